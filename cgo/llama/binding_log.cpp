// Log lines: llama.cpp's one global callback, and who listens.

#include "binding_impl.h"

#include <cstdarg>
#include <mutex>

namespace binding {

static thread_local log_errors * listener = nullptr;

log_errors::log_errors() : outer(listener) { listener = this; }

log_errors::~log_errors() {
    listener = outer;
    for (size_t i = 0; !told && i < lines.size(); ++i) {
        log(GGML_LOG_LEVEL_ERROR, "%s\n", lines[i].c_str());
    }
}

// Whether the text is a listener's. A continued line belongs where its beginning went.
bool collect(ggml_log_level level, const char * text) {
    if (!listener) {
        return false;
    }
    if (level == GGML_LOG_LEVEL_CONT ? !listener->open : level != GGML_LOG_LEVEL_ERROR) {
        listener->open = false;
        return false;
    }
    auto & lines = listener->lines;
    if (!listener->open) {
        lines.emplace_back();
    }
    std::string s = text;
    listener->open = s.empty() || s.back() != '\n';
    while (!s.empty() && s.back() == '\n') {
        s.pop_back();
    }
    lines.back() += s;
    return true;
}

// llama.cpp says "function: what"; the function is of no use to the caller.
static std::string without_function(const std::string & line) {
    const size_t colon = line.find(": ");
    const bool   name  = colon != std::string::npos && line.find(' ') > colon;
    return name ? line.substr(colon + 2) : line;
}

std::string log_errors::text() {
    told = true;
    std::string all;
    for (const auto & line : lines) {
        const std::string s = without_function(line);
        if (!s.empty()) {
            all += (all.empty() ? "" : "; ") + s;
        }
    }
    return all;
}

static void callback(ggml_log_level level, const char * text, void *) {
    if (!collect(level, text)) {
        lesskvLog(level, const_cast<char *>(text));
    }
}

void log(ggml_log_level level, const char * format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (n >= (int) sizeof(text)) {
        text[sizeof(text) - 2] = '\n'; // it is cut, and a line still
    }
    callback(level, text, nullptr);
}

void warn_once(const model & m, const char * format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (m.warned.size() < 100 && m.warned.insert(text).second) {
        log(GGML_LOG_LEVEL_WARN, "lesskv: %s\n", text);
    }
}

} // namespace binding

void llama_binding_log_init(void) {
    static std::once_flag once;
    std::call_once(once, [] { llama_log_set(binding::callback, nullptr); });
}
