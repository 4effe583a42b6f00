// lesskv-budget.cpp: what each KV head may keep ("Budgets" and "Budgets by layer and head" in algorithm.md).

#include "lesskv-memory.h"

#include "llama-hparams.h"
#include "llama-impl.h"

#include <algorithm>
#include <cmath>
#include <numeric>

// Sliding windows hold what they need, and a layer that shares another's cache has none.
static bool has_budget(const lesskv_memory_layer & l) {
    return l.params.n_swa == 0 && !l.shares;
}

bool lesskv_memory::spread() const {
    return !budgets.empty();
}

std::vector<int32_t> lesskv_memory::allocate(int32_t budget) const {
    size_t n = 0;
    for (const auto & l : layers) {
        n += has_budget(l) ? l.params.n_head_kv : 0;
    }
    std::vector<int32_t> slots(n, budget);
    if (!weights.empty()) {
        const auto status = lesskv_allocate(weights.data(), (int32_t) n, budget, lesskv_head_least(budget, pinned), (int32_t) cparams.n_ctx_seq, slots.data());
        if (status != LESSKV_OK) {
            refuse(format("a budget of %d can't be spread over %zu heads: %s", budget, n, lesskv_status_str(status)));
        }
    }
    return slots;
}

uint64_t lesskv_memory::bytes_of(const std::vector<int32_t> & slots) const {
    uint64_t bytes = bytes_kernels;
    size_t at = 0;
    for (const auto & l : layers) {
        if (l.shares) {
            continue;
        }
        lesskv_layer p = l.params;
        std::vector<lesskv_budget> own;
        for (int32_t j = 0; has_budget(l) && j < p.n_head_kv; ++j) {
            own.push_back({ slots[at++], 0 });
        }
        p.budgets = own.data(); // of no meaning to a sliding window
        size_t n, state;
        lesskv_layer_bytes(&p, &n, &state);
        bytes += n + state;
    }
    return bytes;
}

bool lesskv_memory::set_budgets(std::vector<lesskv_memory_layer> & layers, const std::vector<lesskv_budget> & heads) {
    if (std::all_of(heads.begin(), heads.end(), [&](const lesskv_budget & b) { return b.slots == heads[0].slots; })) {
        return false;
    }
    size_t at = 0;
    for (auto & l : layers) {
        if (has_budget(l)) {
            l.params.budgets = &heads[at];
            at += l.params.n_head_kv;
        }
    }
    for (auto & l : layers) { // an owner may come after a layer that shares its cache
        l.params.budgets = layers[l.i].params.budgets;
    }
    return true;
}

void lesskv_memory::set_slots(const std::vector<int32_t> & slots, int32_t heavy_asked) {
    for (const int32_t b : slots) {
        budgets.push_back({ b, lesskv_head_heavy(policy, b, budget, heavy_asked, pinned) });
    }
    for (auto & l : layers) {
        l.params.budget = { budget, heavy };
        l.params.pinned = pinned;
    }
    if (!set_budgets(layers, budgets)) {
        budgets.clear();
    }
}

// The adapter's allocation, of the heads that have a budget.
void lesskv_memory::load_weights() {
    size_t at = 0;
    for (uint32_t il = 0; adapter && !adapter->budget_weights.empty() && il < hparams.n_layer(); ++il) {
        const auto from = adapter->budget_weights.begin() + at;
        at += hparams.n_head_kv(il);
        if (layer_of[il] >= 0 && has_budget(layers[layer_of[il]])) {
            weights.insert(weights.end(), from, from + hparams.n_head_kv(il));
        }
    }
}

bool lesskv_memory::made_for_budget() const {
    return adapter && adapter->bytes > 0 && (int64_t) adapter->heavy + adapter->recent > 0;
}

uint64_t lesskv_memory::takes(int32_t budget, bool all) const {
    const auto slots = allocate(budget);
    if (!on_device || !all) {
        return bytes_of(slots);
    }
    auto same = layers;
    for (auto & l : same) {
        l.params.budget.slots = budget;
    }
    std::vector<lesskv_budget> heads;
    for (const int32_t b : slots) {
        heads.push_back({ b, 0 });
    }
    set_budgets(same, heads);
    return bytes_kernels + lesskv_device::bytes(same, cparams.n_ubatch, cparams.n_seq_max);
}

int64_t lesskv_memory::fit(uint64_t bytes, bool all) const {
    const int64_t n_ctx = cparams.n_ctx_seq;
    if (takes(1, all) > bytes) {
        return 0;
    }
    int64_t n = 1, over = n_ctx + 1; // bytes grow with B, nearly: where slots differ in size a larger B may take less
    while (over - n > 1) {
        const int64_t b = n + (over - n)/2;
        (takes((int32_t) b, all) <= bytes ? n : over) = b;
    }
    for (int64_t b = std::min(over + 8, n_ctx); b > n; --b) {
        if (takes((int32_t) b, all) <= bytes) {
            n = b;
        }
    }
    return n;
}

void lesskv_memory::resolve_budget(const lesskv_config & cfg) {
    const int64_t n_ctx = cparams.n_ctx_seq;
    const int n_given = (cfg.budget > 0) + (cfg.budget_share > 0.0) + (cfg.budget_bytes > 0) + (cfg.budget_full > 0.0) + (cfg.slots != nullptr);
    if (cfg.budget < 0 || !(cfg.budget_share >= 0.0) || !(cfg.budget_full >= 0.0) || n_given > 1) {
        refuse(format("budget %d tokens, %g of the context, %llu bytes, %g of the full cache's bytes%s: give one of the four%s, and none below 0", cfg.budget,
                    cfg.budget_share, (unsigned long long) cfg.budget_bytes, cfg.budget_full, cfg.slots ? ", slots of every head" : "", cfg.slots ? ", or slots" : ""));
    }
    uint64_t full = 0, bounded = 0, windows = 0;
    for (const auto & l : layers) {
        full += l.shares ? 0 : full_bytes(l);
        if (has_budget(l)) {
            bounded += full_bytes(l);
        } else if (!l.shares) {
            size_t n, state;
            lesskv_layer_bytes(&l.params, &n, &state);
            windows += n;
        }
    }
    uint64_t bytes = cfg.budget_bytes;
    if (cfg.budget_full > 0.0) {
        full *= on_device && !cparams.kv_unified ? cparams.n_seq_max : 1; // where all sequences have room at once, there and here
        bytes = (uint64_t) std::max(1.0, std::min(cfg.budget_full*full, 1e18)); // more than there can be is no more than that
    }
    pinned = cfg.pinned;
    load_weights();

    std::vector<int32_t> slots = allocate(1);
    int64_t n = n_ctx;
    int32_t asked = -1; // of B, chosen by score; -1: the policy's share
    if (slots.empty()) {
        // sliding windows alone: there is nothing to share
    } else if (cfg.slots) {
        if (cfg.n_slots != (int32_t) slots.size()) {
            refuse(format("slots of %d heads, this model has %zu with a budget: give one number for each of them, layer by layer", cfg.n_slots, slots.size()));
        }
        slots.assign(cfg.slots, cfg.slots + cfg.n_slots);
        for (auto & b : slots) {
            if (b < std::max(1, pinned)) {
                refuse(format("a head with %d slots: give each at least 1, and as many as are pinned (%d)", b, pinned));
            }
            b = (int32_t) std::min<int64_t>(b, n_ctx);
        }
        n = std::accumulate(slots.begin(), slots.end(), (int64_t) 0)/(int64_t) slots.size();
    } else if (cfg.budget > 0) {
        n = cfg.budget;
    } else if (bytes > 0) {
        n = fit(bytes, true);
        if (n == 0) {
            refuse(format("a budget of %.3f MiB is too small: state, phi and psi, sliding windows and one slot in every head take %.3f MiB%s",
                        bytes/1048576.0, takes(1, true)/1048576.0, on_device ? ", on the device with room for n_ubatch tokens, and all that for each sequence" : ""));
        }
    } else if (cfg.budget_share > 0.0) {
        n = std::max<int64_t>(64, (int64_t) std::floor(std::min(cfg.budget_share, 1.0)*n_ctx));
    } else if (made_for_budget()) { // "Defaults" in algorithm.md
        n = (int64_t) adapter->heavy + adapter->recent;
    } else {
        n = std::max<int64_t>(1024, fit(bounded/12 + windows, false));
    }
    if (made_for_budget() && !cfg.slots && n == (int64_t) adapter->heavy + adapter->recent && n <= n_ctx && (int32_t) adapter->heavy != lesskv_policy_heavy(policy, (int32_t) n)) {
        asked = std::max((int32_t) adapter->heavy, pinned);
    }
    budget = (int32_t) std::min(n, n_ctx); // with B >= n_ctx nothing is evicted
    if (cfg.heavy >= 0) {
        asked = std::min<int64_t>(cfg.heavy, n < n_ctx ? cfg.heavy : budget);
    }
    heavy = asked >= 0 ? asked : lesskv_policy_heavy(policy, budget);
    if (heavy > budget) {
        refuse(format("heavy %d is more than the budget of %d: they share it with the recent ones", heavy, budget));
    }
    if (pinned < 0 || pinned > heavy) {
        refuse(format("pinned %d must be between 0 and heavy, which is %d of a budget of %d: raise the budget or heavy, or pin fewer",
                    pinned, heavy, budget));
    }
    set_slots(cfg.slots ? slots : allocate(budget), asked);
}

// An adapter that was trained for something else is taken: a drop-in goes on where it can. Of micro-batches nothing is said: a text is
// generated in those of one token anyway, and docs/training.md has what other sizes cost.
void lesskv_memory::warn_adapter() const {
    if (!adapter || adapter->bytes == 0 || budget >= (int32_t) cparams.n_ctx_seq) {
        return; // under an allocation alone nothing was trained
    }
    if (made_for_budget() && ((int32_t) adapter->heavy != heavy || (int32_t) adapter->recent != budget - heavy)) {
        LLAMA_LOG_WARN("%s: the adapter was trained with %u heavy + %u recent, this cache keeps %d + %d\n", __func__,
                adapter->heavy, adapter->recent, heavy, budget - heavy);
    }
    if (cparams.rope_freq_base != hparams.rope_freq_base_train || cparams.rope_freq_scale != hparams.rope_freq_scale_train) {
        LLAMA_LOG_WARN("%s: the adapter was trained with the model's own RoPE settings (base %g, scale %g), this context changes them (%g, %g)\n",
                __func__, hparams.rope_freq_base_train, hparams.rope_freq_scale_train, cparams.rope_freq_base, cparams.rope_freq_scale);
    }
}
