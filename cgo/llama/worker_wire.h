// worker_wire.h: the framing of worker.cpp, over standard input and output.
//
//     request   verb[ key=value]...\n [payload]      payload: as many bytes as its key payload=N says
//     reply     ok[ key=value]...\n [payload]        or     error code=N message=TEXT\n
//
// One reply for one request, in order. Values are percent-escaped: %XX for every byte outside 0x21..0x7e and for %.
// Payloads are raw: int32 and float32 in native byte order, or bytes. Booleans are 0 and 1.

#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace wire {

constexpr size_t max_line    = 1 << 16;
constexpr size_t max_payload = size_t(1) << 30;

// What a request is answered with when it can't be done. code is llama_decode's where there is one, else -1.
struct failure : std::runtime_error {
    int code;
    explicit failure(const std::string & message, int code = -1) : std::runtime_error(message), code(code) {}
};

[[noreturn]] __attribute__((format(printf, 1, 2)))
inline void refuse(const char * format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    throw failure(text);
}

inline std::string escape(const std::string & s) {
    static const char hex[] = "0123456789abcdef";
    std::string out;
    for (const unsigned char c : s) {
        if (c > 0x20 && c < 0x7f && c != '%') {
            out += char(c);
        } else {
            out += '%';
            out += hex[c >> 4];
            out += hex[c & 15];
        }
    }
    return out;
}

inline std::string unescape(const std::string & s) {
    const auto digit = [](char c) {
        return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    };
    std::string out;
    for (size_t i = 0; i < s.size(); i++) {
        if (s[i] != '%') {
            out += s[i];
            continue;
        }
        const int hi = i + 1 < s.size() ? digit(s[i + 1]) : -1;
        const int lo = i + 2 < s.size() ? digit(s[i + 2]) : -1;
        if (hi < 0 || lo < 0) {
            refuse("bad escape in %.64s: want %%XX", s.c_str());
        }
        out += char(hi*16 + lo);
        i += 2;
    }
    return out;
}

// The numbers of "1,2,3"; none of "".
inline std::vector<int32_t> numbers(const char * key, const std::string & list, int32_t min, int32_t max) {
    std::vector<int32_t> all;
    for (const char * at = list.c_str(); *at;) {
        char * end = nullptr;
        const long long n = strtoll(at, &end, 10);
        if (end == at || (*end && *end != ',') || n < min || n > max) {
            refuse("%s=%.64s: want numbers from %d to %d with commas between them", key, list.c_str(), min, max);
        }
        all.push_back(int32_t(n));
        at = *end ? end + 1 : end;
    }
    return all;
}

// A request. Getters take a key or the payload out, so that done() finds what nobody asked for.
struct request {
    std::string                        verb;
    std::map<std::string, std::string> args;
    std::vector<uint8_t>               payload;

    bool has(const char * key) const { return args.count(key) > 0; }

    std::string text(const char * key, const std::string & otherwise = "") {
        const auto it = args.find(key);
        if (it == args.end()) {
            return otherwise;
        }
        std::string value = std::move(it->second);
        args.erase(it);
        return value;
    }

    int64_t integer(const char * key, int64_t min, int64_t max) {
        if (!has(key)) {
            refuse("%s wants %s=N", verb.c_str(), key);
        }
        const std::string s = text(key);
        char * end = nullptr;
        errno = 0;
        const long long n = strtoll(s.c_str(), &end, 10);
        if (s.empty() || *end != '\0' || errno != 0 || n < min || n > max) {
            refuse("%s=%.64s: want an integer from %lld to %lld", key, s.c_str(), (long long) min, (long long) max);
        }
        return n;
    }

    int64_t integer(const char * key, int64_t min, int64_t max, int64_t otherwise) {
        return has(key) ? integer(key, min, max) : otherwise;
    }

    float real(const char * key, float otherwise) {
        if (!has(key)) {
            return otherwise;
        }
        const std::string s = text(key);
        char * end = nullptr;
        const float x = strtof(s.c_str(), &end);
        if (s.empty() || *end != '\0') {
            refuse("%s=%.64s: want a number", key, s.c_str());
        }
        return x;
    }

    bool flag(const char * key, bool otherwise) { return integer(key, 0, 1, otherwise) != 0; }

    // The payload.
    std::vector<uint8_t> bytes() { return std::exchange(payload, {}); }

    // The payload as int32.
    std::vector<int32_t> integers() {
        if (payload.size() % sizeof(int32_t) != 0) {
            refuse("payload of %zu bytes: want int32", payload.size());
        }
        const auto raw = bytes();
        std::vector<int32_t> v(raw.size() / sizeof(int32_t));
        if (!v.empty()) {
            memcpy(v.data(), raw.data(), raw.size());
        }
        return v;
    }

    void done() const {
        if (!args.empty()) {
            refuse("%s does not take %.64s", verb.c_str(), args.begin()->first.c_str());
        }
        if (!payload.empty()) {
            refuse("%s does not take a payload: %zu bytes", verb.c_str(), payload.size());
        }
    }
};

class reply {
public:
    void set(const char * key, const std::string & value) { fields += std::string(" ") + key + "=" + escape(value); }
    void set(const char * key, const char * value)        { set(key, std::string(value)); }
    void set(const char * key, int64_t value)             { set(key, std::to_string(value)); }

    // Adds to the payload without a copy: data must live until the reply is sent.
    void lend(const void * data, size_t size) { parts.push_back({ data, size }); }

    // Adds to the payload, keeping it.
    template <typename T>
    void give(std::vector<T> && v) {
        const auto * p = reinterpret_cast<const uint8_t *>(v.data());
        owned.emplace_back(p, p + v.size()*sizeof(T));
        lend(owned.back().data(), owned.back().size());
    }

    bool send(FILE * out) const {
        size_t size = 0;
        for (const auto & p : parts) {
            size += p.second;
        }
        bool ok = fprintf(out, "ok%s payload=%zu\n", fields.c_str(), size) > 0;
        for (const auto & p : parts) {
            ok = ok && (p.second == 0 || fwrite(p.first, 1, p.second, out) == p.second);
        }
        return ok && fflush(out) == 0;
    }

private:
    std::string                                   fields;
    std::vector<std::pair<const void *, size_t>>  parts;
    std::vector<std::vector<uint8_t>>             owned;
};

inline bool send_error(FILE * out, int code, const std::string & message) {
    return fprintf(out, "error code=%d message=%s\n", code, escape(message).c_str()) > 0 && fflush(out) == 0;
}

// Reads the next request. False at the end of the input. A request that is malformed throws failure, after it was read
// whole, so that the next one is found.
inline bool receive(FILE * in, request & req) {
    req = request();
    std::string line;
    bool too_long = false;
    int c;
    while ((c = getc(in)) != EOF && c != '\n') {
        too_long = line.size() >= max_line;
        if (!too_long) {
            line += char(c);
        }
    }
    if (c == EOF) {
        return false;
    }
    if (too_long) {
        refuse("request line of more than %zu bytes", max_line);
    }

    std::vector<std::string> words;
    for (size_t i = 0; i < line.size();) {
        const size_t end = std::min(line.find(' ', i), line.size());
        if (end > i) {
            words.push_back(line.substr(i, end - i));
        }
        i = end + 1;
    }
    if (words.empty()) {
        refuse("empty request");
    }

    // The payload first: it is in the pipe whatever is wrong with the rest.
    int n_payloads = 0;
    for (const auto & word : words) {
        if (word.rfind("payload=", 0) != 0) {
            continue;
        }
        n_payloads++;
        char * end = nullptr;
        const char * digits = word.c_str() + strlen("payload=");
        const unsigned long long n = strtoull(digits, &end, 10);
        if (*digits < '0' || *digits > '9' || *end != '\0') {
            refuse("%.64s: want a number of bytes", word.c_str());
        }
        const char * why = n > max_payload ? "more than a request may have" : nullptr;
        req.payload.clear();
        size_t at = 0;
        while (at < n && !why) { // in pieces: memory follows what comes, not what was announced
            const size_t piece = std::min<size_t>(n - at, std::max<size_t>(at, 1 << 20));
            try {
                req.payload.resize(at + piece);
            } catch (const std::bad_alloc &) {
                why = "no memory for it";
                break;
            }
            if (fread(req.payload.data() + at, 1, piece, in) != piece) {
                return false;
            }
            at += piece;
        }
        if (why) {
            for (unsigned long long i = at; i < n && getc(in) != EOF; i++) {
            }
            req.payload.clear();
            refuse("payload of %llu bytes: %s", n, why);
        }
    }

    if (n_payloads > 1) {
        refuse("%d payloads: want one", n_payloads);
    }

    req.verb = words[0];
    for (size_t i = 1; i < words.size(); i++) {
        const size_t eq = words[i].find('=');
        if (eq == std::string::npos || eq == 0) {
            refuse("%.64s: want key=value", words[i].c_str());
        }
        const std::string key = words[i].substr(0, eq);
        if (key != "payload" && !req.args.emplace(key, unescape(words[i].substr(eq + 1))).second) {
            refuse("%.64s is there twice", key.c_str());
        }
    }
    return true;
}

} // namespace wire
