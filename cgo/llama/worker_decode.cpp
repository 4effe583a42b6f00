// worker_decode.cpp: batches through the decoder and the encoder.

#include "worker.h"

struct worker::batch {
    std::vector<int32_t>               token, pos, n_seq;
    std::vector<int8_t>                row;
    std::vector<std::vector<int32_t>>  seqs;
    std::vector<int32_t *>             seq;

    void add(int32_t t, int32_t p, bool r, const std::vector<int32_t> & s) {
        token.push_back(t);
        pos.push_back(p);
        row.push_back(r);
        n_seq.push_back(int32_t(s.size()));
        seqs.push_back(s);
    }

    llama_batch get() {
        seq.clear();
        for (auto & s : seqs) {
            seq.push_back(s.data());
        }
        return { int32_t(token.size()), token.data(), nullptr, pos.data(), n_seq.data(), seq.data(), row.data() };
    }
};

// What llama_decode would abort on.
void worker::check_batch(const batch & b, bool whole) const {
    const int64_t n = int64_t(b.token.size());
    if (n == 0) {
        refuse("no tokens");
    }
    if (n > int64_t(llama_n_batch(ctx.get()))) {
        refuse("%lld tokens: want at most n_batch = %u", (long long) n, llama_n_batch(ctx.get()));
    }
    if (whole && n > int64_t(llama_n_ubatch(ctx.get()))) {
        refuse("%lld tokens: attention is not causal, want at most n_ubatch = %u", (long long) n, llama_n_ubatch(ctx.get()));
    }
    check_tokens(b.token);
    for (int64_t i = 0; i < n; i++) {
        if (b.pos[i] < 0) {
            refuse("token %lld has position %d: want 0 or more", (long long) i, b.pos[i]);
        }
        for (const int32_t s : b.seqs[i]) {
            if (s < 0 || s >= n_seq()) {
                refuse("token %lld is of sequence %d: want 0 to %lld", (long long) i, s, (long long) n_seq() - 1);
            }
        }
    }
}

worker::batch worker::read_batch(request & req) const {
    batch b;
    const auto v = req.integers();
    if (req.flag("each", false)) {
        req.done();
        constexpr size_t width = 5;
        if (v.size() % width != 0) {
            refuse("payload of %zu int32: want (token, pos, row, seq, other) for each token", v.size());
        }
        for (size_t i = 0; i < v.size(); i += width) {
            std::vector<int32_t> seqs = { v[i + 3] };
            if (v[i + 4] != -1) {
                seqs.push_back(v[i + 4]);
            }
            b.add(v[i], v[i + 1], v[i + 2] != 0, seqs);
        }
        return b;
    }
    const std::string rows = req.text("rows", "last");
    if (rows != "none" && rows != "last" && rows != "all") {
        refuse("rows=%.64s: want none, last or all", rows.c_str());
    }
    const int32_t seq = int32_t(req.integer("seq", 0, n_seq() - 1, 0));
    const int64_t pos = req.integer("pos", 0, max_i32 - int64_t(v.size()), 0);
    req.done();
    for (size_t i = 0; i < v.size(); i++) {
        b.add(v[i], int32_t(pos + int64_t(i)), rows == "all" || (rows == "last" && i + 1 == v.size()), { seq });
    }
    return b;
}

// Runs a batch. Returns microseconds.
int64_t worker::run(llama_batch b) {
    const int64_t start = llama_time_us();
    const int code = llama_decode(ctx.get(), b);
    llama_synchronize(ctx.get());
    if (code != 0) {
        throw failure(with_reason("llama_decode returned " + std::to_string(code)), code);
    }
    return llama_time_us() - start;
}

void worker::decode(request & req, reply & out) {
    batch b = read_batch(req);
    const bool whole = !cache() || meta(arch() + ".attention.causal") == "false";
    check_batch(b, whole);
    if (!llama_model_has_decoder(model.get())) {
        refuse("the model has no decoder: use encode");
    }
    if (llama_model_has_encoder(model.get()) && !encoded) {
        refuse("the model has an encoder: encode first");
    }
    out.set("us", run(b.get()));
    const int64_t n = cache() ? std::count(b.row.begin(), b.row.end(), 1) : int64_t(b.token.size());
    rows(n, out);
}

void worker::embed(request & req, reply & out) {
    int32_t seq = seq_of(req);
    const auto v = req.integers();
    req.done();
    const auto   rope     = llama_model_rope_type(model.get());
    const size_t sections = rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE ? 4 : 1;
    const size_t width    = llama_model_n_embd_inp(model.get());
    const size_t n        = v.size()/(sections + width);
    if (n == 0 || n*(sections + width) != v.size() || n > llama_n_batch(ctx.get())) {
        refuse("%zu values are no embeddings of %zu with %zu positions each, 1 to %u of them", v.size(), width, sections, llama_n_batch(ctx.get()));
    }
    std::vector<int32_t>   pos(v.begin(), v.begin() + n*sections);
    std::vector<float>     embd(n*width);
    std::vector<int32_t>   n_seq(n, 1);
    std::vector<int32_t *> seqs(n, &seq);
    std::vector<int8_t>    row(n, 0);
    memcpy(embd.data(), v.data() + n*sections, embd.size()*sizeof(float));
    row.back() = 1;
    for (const int32_t p : pos) {
        if (p < 0) {
            refuse("position %d: want 0 or more", p);
        }
    }
    out.set("us", run({ int32_t(n), nullptr, embd.data(), pos.data(), n_seq.data(), seqs.data(), row.data() }));
    rows(1, out);
}

void worker::encode(request & req, reply & out) {
    batch b = read_batch(req);
    check_batch(b, true);
    if (!llama_model_has_encoder(model.get()) && !less_on) { // LESS refuses it itself
        refuse("the model has no encoder that runs by itself: use decode");
    }
    const int code = llama_encode(ctx.get(), b.get());
    llama_synchronize(ctx.get());
    if (code != 0) {
        throw failure(with_reason("llama_encode returned " + std::to_string(code)), code);
    }
    encoded = true;
    rows(embeddings ? int64_t(b.token.size()) : 0, out);
}

// The first n rows of the output, which lie in the order of the batch.
void worker::rows(int64_t n, reply & out) {
    const int64_t width = embeddings ? llama_model_n_embd_out(model.get()) : llama_vocab_n_tokens(vocab);
    const float * data  = n == 0 ? nullptr : embeddings ? llama_get_embeddings(ctx.get()) : llama_get_logits(ctx.get());
    if (n > 0 && !data) {
        refuse("the model has no such output: try embeddings=%d", !embeddings);
    }
    out.set("rows",  n);
    out.set("width", width);
    out.lend(data, size_t(n*width)*sizeof(float));
}

void worker::greedy(request & req, reply & out) {
    const int32_t n_vocab = llama_vocab_n_tokens(vocab);
    const int64_t n    = req.integer("n", 0, max_ctx);
    int32_t token      = int32_t(req.integer("token", 0, n_vocab - 1));
    const int32_t seq  = int32_t(req.integer("seq", 0, n_seq() - 1, 0));
    const int64_t pos  = req.integer("pos", 0, max_i32 - n);
    const bool    keep = req.flag("rows", false);
    req.done();
    if (!cache() || embeddings || llama_model_has_encoder(model.get())) {
        refuse("greedy wants a decoder with a cache, opened without embeddings=1");
    }

    std::vector<int32_t> tokens;
    std::vector<float>   all;
    int64_t us = 0;
    for (int64_t i = 0; i < n; i++) {
        batch b;
        b.add(token, int32_t(pos + i), true, { seq });
        us += run(b.get());
        const float * row = llama_get_logits(ctx.get());
        token = int32_t(std::max_element(row, row + n_vocab) - row);
        tokens.push_back(token);
        if (keep) {
            all.insert(all.end(), row, row + n_vocab);
        }
    }
    out.set("us", us);
    out.give(std::move(tokens));
    out.give(std::move(all));
}

void worker::threads(request & req, reply &) {
    const int32_t n = int32_t(req.integer("n", 1, max_threads));
    req.done();
    llama_set_n_threads(ctx.get(), n, n);
}

void worker::set_abort(request & req, reply &) {
    stop.left = req.integer("after", -1, max_i32);
    req.done();
    const bool on = stop.left >= 0;
    llama_set_abort_callback(ctx.get(), on ? abort_after::callback : nullptr, on ? &stop : nullptr);
}

void worker::set_causal(request & req, reply &) {
    const bool on = req.flag("on", true);
    req.done();
    llama_set_causal_attn(ctx.get(), on);
}
