// lesskv_prefix.h: with -DLESSKV_PREFIX=xyz_ every symbol with external linkage is called xyz_lesskv_..., so that two
// copies of these sources (the Go package's and the runtime's) live in one program without sharing a name.

#ifndef LESSKV_PREFIX_H
#define LESSKV_PREFIX_H

#ifdef LESSKV_PREFIX

#define LESSKV_NAME__(prefix, name) prefix##name
#define LESSKV_NAME_(prefix, name)  LESSKV_NAME__(prefix, name)
#define LESSKV_NAME(name)           LESSKV_NAME_(LESSKV_PREFIX, name)

// lesskv.h
#define lesskv_row_size        LESSKV_NAME(lesskv_row_size)
#define lesskv_from_f32        LESSKV_NAME(lesskv_from_f32)
#define lesskv_to_f32          LESSKV_NAME(lesskv_to_f32)
#define lesskv_status_str      LESSKV_NAME(lesskv_status_str)
#define lesskv_policy_find     LESSKV_NAME(lesskv_policy_find)
#define lesskv_policy_name     LESSKV_NAME(lesskv_policy_name)
#define lesskv_policy_at       LESSKV_NAME(lesskv_policy_at)
#define lesskv_policy_help     LESSKV_NAME(lesskv_policy_help)
#define lesskv_policy_heavy    LESSKV_NAME(lesskv_policy_heavy)
#define lesskv_allocate        LESSKV_NAME(lesskv_allocate)
#define lesskv_head_least      LESSKV_NAME(lesskv_head_least)
#define lesskv_head_heavy      LESSKV_NAME(lesskv_head_heavy)
#define lesskv_cache_new       LESSKV_NAME(lesskv_cache_new)
#define lesskv_cache_free      LESSKV_NAME(lesskv_cache_free)
#define lesskv_cache_clear     LESSKV_NAME(lesskv_cache_clear)
#define lesskv_cache_layer     LESSKV_NAME(lesskv_cache_layer)
#define lesskv_cache_copy      LESSKV_NAME(lesskv_cache_copy)
#define lesskv_cache_cut       LESSKV_NAME(lesskv_cache_cut)
#define lesskv_cache_stats     LESSKV_NAME(lesskv_cache_stats)
#define lesskv_cache_slots     LESSKV_NAME(lesskv_cache_slots)
#define lesskv_cache_width     LESSKV_NAME(lesskv_cache_width)
#define lesskv_cache_save_size LESSKV_NAME(lesskv_cache_save_size)
#define lesskv_cache_save      LESSKV_NAME(lesskv_cache_save)
#define lesskv_cache_load      LESSKV_NAME(lesskv_cache_load)
#define lesskv_layer_bytes     LESSKV_NAME(lesskv_layer_bytes)
#define lesskv_scratch_size    LESSKV_NAME(lesskv_scratch_size)
#define lesskv_attend          LESSKV_NAME(lesskv_attend)
#define lesskv_attend_ref      LESSKV_NAME(lesskv_attend_ref)
#define lesskv_worth_size      LESSKV_NAME(lesskv_worth_size)
#define lesskv_gather          LESSKV_NAME(lesskv_gather)
#define lesskv_commit          LESSKV_NAME(lesskv_commit)
#define lesskv_commit_ref      LESSKV_NAME(lesskv_commit_ref)
#define lesskv_phase_name      LESSKV_NAME(lesskv_phase_name)
#define lesskv_phi             LESSKV_NAME(lesskv_phi)
#define lesskv_psi             LESSKV_NAME(lesskv_psi)
#define lesskv_sha256_init     LESSKV_NAME(lesskv_sha256_init)
#define lesskv_sha256_update   LESSKV_NAME(lesskv_sha256_update)
#define lesskv_sha256_final    LESSKV_NAME(lesskv_sha256_final)

// internal
#define lesskv_now             LESSKV_NAME(lesskv_now)
#define lesskv_policy_register LESSKV_NAME(lesskv_policy_register)
#define lesskv_layer_plain     LESSKV_NAME(lesskv_layer_plain)
#define lesskv_layer_asking    LESSKV_NAME(lesskv_layer_asking)
#define lesskv_finite          LESSKV_NAME(lesskv_finite)
#define lesskv_select          LESSKV_NAME(lesskv_select)
#define lesskv_sort            LESSKV_NAME(lesskv_sort)
#define lesskv_scratch_plan    LESSKV_NAME(lesskv_scratch_plan)
#define lesskv_rows_one        LESSKV_NAME(lesskv_rows_one)
#define lesskv_rows_block      LESSKV_NAME(lesskv_rows_block)
#define lesskv_rows_few        LESSKV_NAME(lesskv_rows_few)
#define lesskv_cols_few        LESSKV_NAME(lesskv_cols_few)
#define lesskv_cols_block      LESSKV_NAME(lesskv_cols_block)
#define lesskv_phi_block       LESSKV_NAME(lesskv_phi_block)
#define lesskv_psi_block       LESSKV_NAME(lesskv_psi_block)
#define lesskv_phi_ref         LESSKV_NAME(lesskv_phi_ref)
#define lesskv_psi_ref         LESSKV_NAME(lesskv_psi_ref)

#endif

#endif
