// Embeddings: what a text is to the model, as one vector.

#include "binding_impl.h"

namespace binding {

// The context gives embeddings while this lives, and is empty before and after: neither the text that was there nor this
// one changes what the other comes to.
class embedding_mode {
public:
    explicit embedding_mode(model & m) : m(m) { m.main.forget(); }
    ~embedding_mode() {
        llama_set_embeddings(m.main.ctx.get(), false);
        m.main.forget();
    }
    embedding_mode(const embedding_mode &) = delete;
    embedding_mode & operator=(const embedding_mode &) = delete;
    void on() { llama_set_embeddings(m.main.ctx.get(), true); }
private:
    model & m;
};

// A model that is made for embeddings pools over all tokens, which it must see at once.
static const float * embed_whole(model & m, std::vector<llama_token> & tokens) {
    if (tokens.size() > llama_n_ubatch(m.main.ctx.get())) {
        fail(LLAMA_BINDING_CONTEXT, "the text has %zu tokens, and this model takes %u at a time: shorten it, or load the model with a larger batch (512 at most)",
                tokens.size(), llama_n_ubatch(m.main.ctx.get()));
    }
    m.main.decode(tokens.data(), tokens.size());
    return llama_pooling_type(m.main.ctx.get()) == LLAMA_POOLING_TYPE_NONE ? llama_get_embeddings_ith(m.main.ctx.get(), -1) : llama_get_embeddings_seq(m.main.ctx.get(), 0);
}

// Any other has the last token stand for the text.
static const float * embed_last(model & m, params & p, embedding_mode & mode, std::vector<llama_token> & tokens) {
    const llama_token last = tokens.back();
    tokens.pop_back();
    if (!m.main.feed(tokens.data(), tokens.size(), p.n_batch, m.interrupted)) {
        m.last.stop = LLAMA_BINDING_STOP_INTERRUPT;
        fail(LLAMA_BINDING_FAILED, "interrupted");
    }
    mode.on();
    m.main.decode(&last, 1);
    return llama_get_embeddings_ith(m.main.ctx.get(), -1);
}

void embed(model & m, params & p, std::vector<llama_token> tokens) {
    m.last = {};
    check(m, p);
    const llama_model * weights = m.weights.get();
    if (llama_model_has_encoder(weights) && llama_model_has_decoder(weights)) {
        fail(LLAMA_BINDING_MISSING, "a model with an encoder and a decoder has no embeddings in this runtime");
    }
    const auto pooling = llama_pooling_type(m.main.ctx.get());
    if (pooling == LLAMA_POOLING_TYPE_RANK) {
        fail(LLAMA_BINDING_MISSING, "the model ranks texts, it has no embeddings");
    }
    const int32_t n_vocab = llama_vocab_n_tokens(m.vocab());
    for (const llama_token t : tokens) {
        if (t < 0 || t >= n_vocab) {
            fail(LLAMA_BINDING_ARGUMENT, "token %d: the model has tokens 0 to %d", t, n_vocab - 1);
        }
    }
    if (tokens.empty()) {
        fail(LLAMA_BINDING_ARGUMENT, "no tokens: want at least one");
    }
    check_fits(m.main, tokens.size());

    m.main.set_threads(p.n_threads);
    embedding_mode mode(m);
    const float * values;
    if (pooling != LLAMA_POOLING_TYPE_NONE || !llama_get_memory(m.main.ctx.get())) {
        mode.on();
        values = embed_whole(m, tokens);
    } else {
        values = embed_last(m, p, mode, tokens);
    }
    if (!values) {
        fail(LLAMA_BINDING_FAILED, "the model left no embeddings");
    }
    p.embedding.assign(values, values + llama_model_n_embd_out(weights));
}

} // namespace binding
