// lesskv-model.h: what LESS asks of a model: whose cache a layer attends to and, declared in lesskv-llama.h, whether LESS serves the model.

#pragma once

#include <cstdint>

struct llama_hparams;

// The layer whose keys and values layer il attends to: itself, or the one that it shares them with.
uint32_t lesskv_owner(const llama_hparams & hparams, uint32_t il);
