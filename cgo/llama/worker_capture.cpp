// worker_capture.cpp: copies of what goes into the attention of LESS and what comes out.

#include "worker.h"

bool capture::callback(ggml_tensor * t, bool ask, void * self) {
    auto & c = *static_cast<capture *>(self);
    int  il  = -1;
    char end = '\0'; // views of the node are named after it, with more behind
    const bool wanted = sscanf(t->name, "lesskv_attn-%d%c", &il, &end) == 1 && (c.all || c.layers.count(il) > 0);
    if (!ask && wanted && c.throws) {
        throw failure("the callback was asked to throw");
    }
    if (!ask && wanted) {
        c.take(t, il);
    }
    return ask ? wanted : !(wanted && c.ends);
}

void capture::take(const ggml_tensor * t, int il) {
    const ggml_tensor * q = t->src[0];
    const ggml_tensor * k = t->src[1];
    const ggml_tensor * v = t->src[2];
    if (!k || !v) {
        return; // LESS on the device has no node with all of them
    }
    const int32_t head[6] = { il, int32_t(q->ne[2]), int32_t(q->ne[1]), int32_t(k->ne[1]), int32_t(q->ne[0]), int32_t(v->ne[0]) };
    append(head, sizeof(head));
    append(q);
    append(k);
    append(v);
    append(t);
    n++;
}

void capture::append(const void * data, size_t size) {
    const auto * p = static_cast<const uint8_t *>(data);
    records.insert(records.end(), p, p + size);
}

// As float32, without gaps.
void capture::append(const ggml_tensor * t) {
    const auto to_float = ggml_get_type_traits(t->type)->to_float;
    std::vector<uint8_t> raw(ggml_nbytes(t));
    std::vector<float>   row(t->ne[0]);
    ggml_backend_tensor_get(t, raw.data(), 0, raw.size());
    for (int64_t i2 = 0; i2 < t->ne[2]; i2++) {
        for (int64_t i1 = 0; i1 < t->ne[1]; i1++) {
            const uint8_t * src = raw.data() + i2*t->nb[2] + i1*t->nb[1];
            if (t->type == GGML_TYPE_F32) {
                append(src, row.size()*sizeof(float));
            } else {
                to_float(src, row.data(), t->ne[0]);
                append(row.data(), row.size()*sizeof(float));
            }
        }
    }
}

void worker::set_capture(request & req, reply &) {
    const std::string which = req.text("layers", "all");
    const bool        ends  = req.flag("ends", false);
    const bool        throws = req.flag("throws", false);
    req.done();
    if (!can_capture) {
        refuse("open with capture=1 first");
    }
    std::set<int> some;
    if (which != "all" && which != "none") {
        const auto list = wire::numbers("layers", which, 0, llama_model_n_layer(model.get()) - 1);
        some.insert(list.begin(), list.end());
    }
    copies.all    = which == "all";
    copies.layers = std::move(some);
    copies.ends   = ends;
    copies.throws = throws;
}

void worker::captured(request & req, reply & out) {
    req.done();
    out.set("n", copies.n);
    out.give(std::move(copies.records));
    copies.records = {};
    copies.n       = 0;
}
