// lesskv-fingerprint.h: what all quantisations of a model have in common ("The adapter file" in algorithm.md): adapters and saved states name
// the model by it.

#pragma once

#include <string>

struct llama_model;

// 64 lower-case hex digits over the geometry and the one-dimensional tensors of a loaded model.
std::string lesskv_model_fingerprint(const llama_model & model);
