// level_table.h: a table of level.h. LEVEL is its C name, LEVEL_NAME the one for people.

#include "vec.h"

#include "level_types.h"
#include "level_mat.h"
#include "level_softmax.h"
#include "level_train.h"

const struct lesskv_level LEVEL = {
    .name          = LEVEL_NAME,
    .to_f32        = to_f32,
    .rows_few      = rows_few,
    .rows_block    = rows_block,
    .cols_few      = cols_few,
    .cols_block    = cols_block,
    .soft_cap      = soft_cap,
    .softmax       = softmax,
    .softmax_block = softmax_block,
    .worth_block   = worth_block,
    .worth_few     = worth_few,
    .activate      = activate,
    .rotate        = rotate,
    .gemm          = gemm,
    .gemm_panels   = gemm_panels,
    .state_mix     = state_mix,
    .state_dot     = state_dot,
    .state_add     = state_add,
    .gelu          = gelu_all,
    .gelu_back     = gelu_back,
};
