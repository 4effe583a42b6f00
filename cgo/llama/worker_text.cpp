// worker_text.cpp: text to tokens and back.

#include "worker.h"

void worker::check_tokens(const std::vector<int32_t> & tokens) const {
    const int32_t n = llama_vocab_n_tokens(vocab);
    for (size_t i = 0; i < tokens.size(); i++) {
        if (tokens[i] < 0 || tokens[i] >= n) {
            refuse("token %zu is %d: want 0 to %d", i, tokens[i], n - 1);
        }
    }
}

void worker::tokenize(request & req, reply & out) {
    const bool special = req.flag("special", true);
    const bool parse   = req.flag("parse", false);
    const auto bytes   = req.bytes();
    req.done();
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        refuse("the model has no tokenizer");
    }
    if (special && ((llama_vocab_get_add_bos(vocab) && llama_vocab_bos(vocab) < 0) ||
                    (llama_vocab_get_add_eos(vocab) && llama_vocab_eos(vocab) < 0))) {
        refuse("the model's vocabulary lacks a special token that it wants added: try special=0");
    }
    const char * text = bytes.empty() ? "" : reinterpret_cast<const char *>(bytes.data());
    const int32_t size = int32_t(bytes.size());
    int32_t n = llama_tokenize(vocab, text, size, nullptr, 0, special, parse);
    if (n == INT32_MIN) {
        refuse("%d bytes make more tokens than fit", size);
    }
    std::vector<int32_t> tokens(std::abs(n));
    n = llama_tokenize(vocab, text, size, tokens.data(), int32_t(tokens.size()), special, parse);
    if (n != int32_t(tokens.size())) {
        refuse("tokenizing gave %d tokens, then %d", int(tokens.size()), n);
    }
    out.set("n", n);
    out.give(std::move(tokens));
}

void worker::detokenize(request & req, reply & out) {
    const bool special = req.flag("special", false);
    const auto tokens  = req.integers();
    req.done();
    check_tokens(tokens);
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        refuse("the model has no tokenizer");
    }
    const int32_t n_tokens = int32_t(tokens.size());
    int32_t n = llama_detokenize(vocab, tokens.data(), n_tokens, nullptr, 0, false, special);
    std::vector<char> text(std::abs(n));
    n = llama_detokenize(vocab, tokens.data(), n_tokens, text.data(), int32_t(text.size()), false, special);
    text.resize(std::max(n, 0));
    out.give(std::move(text));
}
