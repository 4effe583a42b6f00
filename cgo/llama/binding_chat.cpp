// The text of a chat. llama.cpp tells the usual templates by what they look like and has a form for each; it runs no template.

#include "binding_impl.h"

namespace binding {

std::string chat(const model & m, const std::vector<llama_chat_message> & messages, bool open) {
    const char * form = llama_model_chat_template(m.weights.get(), nullptr);
    if (!form) {
        fail(LLAMA_BINDING_MISSING, "the model has no chat template");
    }
    std::string text;
    int32_t n = llama_chat_apply_template(form, messages.data(), messages.size(), open, nullptr, 0);
    if (n < 0) {
        fail(LLAMA_BINDING_MISSING, "the model's chat template is none that llama.cpp knows");
    }
    text.resize(n + 1); // llama.cpp ends it with a zero
    n = llama_chat_apply_template(form, messages.data(), messages.size(), open, &text[0], (int32_t) text.size());
    text.resize(n);
    return text;
}

} // namespace binding
