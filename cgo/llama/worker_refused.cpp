// worker_refused.cpp: what only some contexts can do, and LESS refuses.

#include "worker.h"

// A context of another model that takes part in this one's.
void worker::beside(request & req, reply &) {
    const std::string path = req.text("path");
    req.done();
    const std::unique_ptr<llama_model, decltype(&llama_model_free)> other(llama_model_load_from_file(path.c_str(), llama_model_default_params()), llama_model_free);
    if (!other) {
        throw failure(with_reason("can't load " + path));
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx     = llama_n_ctx(ctx.get());
    params.ctx_other = ctx.get();
    const std::unique_ptr<llama_context, decltype(&llama_free)> made(llama_init_from_model(other.get(), params), llama_free);
    if (!made) {
        throw failure("can't make a context for " + path + ": " + log.errors); // the open one's last error is another's
    }
}

// Asks LESS to be trained, which it refuses. Without it, there would have to be something to train.
void worker::train(request & req, reply &) {
    req.done();
    if (!less_on) {
        refuse("train: open with less=1 first");
    }
    llama_opt_params params = {};
    llama_opt_init(ctx.get(), model.get(), params);
    llama_opt_epoch(ctx.get(), nullptr, nullptr, nullptr, 0, nullptr, nullptr);
    throw failure(with_reason("can't train"));
}
