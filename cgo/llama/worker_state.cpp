// worker_state.cpp: states saved and loaded, in memory and in files.

#include "worker.h"

#include <cstdio>

void worker::save(request & req, reply & out) {
    const int32_t seq = int32_t(req.integer("seq", -1, n_seq() - 1, -1));
    const std::string file = req.text("file");
    const llama_state_seq_flags flags = llama_state_seq_flags(req.integer("flags", 0, max_i32, 0));
    const auto tokens = file.empty() ? std::vector<int32_t>() : req.integers();
    req.done();
    if (!file.empty()) {
        const bool ok = seq < 0
            ? llama_state_save_file(ctx.get(), file.c_str(), tokens.data(), tokens.size())
            : llama_state_seq_save_file(ctx.get(), file.c_str(), seq, tokens.data(), tokens.size()) > 0;
        if (!ok) {
            throw failure(with_reason("can't save the state to " + file));
        }
        return;
    }
    std::vector<uint8_t> state(seq < 0 ? llama_state_get_size(ctx.get()) : llama_state_seq_get_size_ext(ctx.get(), seq, flags));
    const size_t n = seq < 0
        ? llama_state_get_data(ctx.get(), state.data(), state.size())
        : llama_state_seq_get_data_ext(ctx.get(), state.data(), state.size(), seq, flags);
    if (state.empty() || n != state.size()) {
        throw failure(with_reason("can't save the state"));
    }
#ifdef LESSKV
    if (seq >= 0 && lesskv_enabled(ctx.get()) && lesskv_state_size(ctx.get(), seq) != n) {
        throw failure("the state of a sequence is not as large as lesskv_state_size says");
    }
#endif
    out.give(std::move(state));
}

// A whole state begins with the architecture's name, which llama.cpp would allocate for as long as it finds it.
void worker::check_whole_state(const std::vector<uint8_t> & head) const {
    const std::string want = arch();
    uint32_t size = 0;
    if (head.size() >= sizeof(size)) {
        memcpy(&size, head.data(), sizeof(size));
    }
    if (size != want.size() || head.size() < sizeof(size) + size || memcmp(head.data() + sizeof(size), want.data(), size) != 0) {
        refuse("not the state of a %s model", want.c_str());
    }
}

// The number of tokens kept in a state file, of which a whole state is checked.
size_t worker::check_state_file(const std::string & file, bool whole) const {
    std::unique_ptr<FILE, int (*)(FILE *)> f(fopen(file.c_str(), "rb"), fclose);
    uint32_t head[3] = {}; // magic, version, tokens
    if (!f || fread(head, sizeof(head), 1, f.get()) != 1) {
        refuse("%s: %s", file.c_str(), f ? "too short for a state" : strerror(errno));
    }
    fseek(f.get(), 0, SEEK_END);
    const long end = ftell(f.get());
    if (end < 0 || uint64_t(head[2])*sizeof(int32_t) + sizeof(head) > uint64_t(end)) {
        refuse("%s: %u tokens do not fit in %ld bytes", file.c_str(), head[2], end);
    }
    if (whole && head[0] == LLAMA_SESSION_MAGIC) {
        std::vector<uint8_t> rest(512);
        fseek(f.get(), long(sizeof(head) + head[2]*sizeof(int32_t)), SEEK_SET);
        rest.resize(fread(rest.data(), 1, rest.size(), f.get()));
        check_whole_state(rest);
    }
    return head[2];
}

void worker::load(request & req, reply & out) {
    const int32_t seq = int32_t(req.integer("seq", -1, n_seq() - 1, -1));
    const std::string file = req.text("file");
    const llama_state_seq_flags flags = llama_state_seq_flags(req.integer("flags", 0, max_i32, 0));
    const auto state = file.empty() ? req.bytes() : std::vector<uint8_t>();
    req.done();
    if (!file.empty()) {
        std::vector<int32_t> tokens(check_state_file(file, seq < 0));
        size_t n = 0;
        const bool ok = seq < 0
            ? llama_state_load_file(ctx.get(), file.c_str(), tokens.data(), tokens.size(), &n)
            : llama_state_seq_load_file(ctx.get(), file.c_str(), seq, tokens.data(), tokens.size(), &n) > 0;
        if (!ok) {
            throw failure(with_reason("can't load the state from " + file));
        }
        out.give(std::move(tokens));
        return;
    }
    if (seq < 0) {
        check_whole_state(state);
    }
    const size_t n = seq < 0
        ? llama_state_set_data(ctx.get(), state.data(), state.size())
        : llama_state_seq_set_data_ext(ctx.get(), state.data(), state.size(), seq, flags);
    if (n == 0) {
        throw failure(with_reason("can't load the state"));
    }
    out.set("bytes", int64_t(n));
}
