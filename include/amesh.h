/*
 * The C interface of ngx_amesh_module: what Lua (lualib/resty/amesh.lua), libxds.so and other modules of nginx read of the
 * mesh. docs/abi.md says how it is used. This file is the one truth: the module's own types are made of it, and
 * amesh_abi_cdef() hands it to LuaJIT.
 *
 * To be called in processes of nginx that read the zone: workers, cache processes, the privileged agent; there also by
 * threads other than nginx's own, except where a function takes a request. No function blocks, locks, or keeps what it is
 * handed; what it gives is written into memory of the caller. Texts are not terminated by zero.
 */
#ifndef AMESH_H
#define AMESH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* begin of the declarations */

enum {
    /* Major << 16 | minor: another major cannot be used, a greater minor has more. */
    AMESH_ABI_VERSION = 0x00010000
};

/* What a function returns. */
enum {
    AMESH_OK = 0,
    /* There is no such thing. */
    AMESH_NOT_FOUND = 1,
    /* The buffer is too small: the room that it takes is told. */
    AMESH_NO_ROOM = 2,
    /* This process reads no zone: no "amesh" block, or no worker (yet). */
    AMESH_NO_ZONE = -1,
    /* An argument makes no sense. */
    AMESH_BAD_ARGUMENT = -2,
    /* A defect of the module: the error log has it. */
    AMESH_FAILED = -3
};

/* Kinds of slots. */
enum {
    AMESH_LISTENER = 1,
    AMESH_ROUTE_TABLE = 2,
    AMESH_CLUSTER = 3,
    AMESH_ENDPOINT_SET = 4,
    /* One alone, its name is empty. */
    AMESH_LISTENER_INDEX = 5
};

typedef struct {
    const char *data;
    size_t      len;
} amesh_str_t;

/* An entry of a list of slots; the name follows it, and after that zeroes up to the next multiple of 8 bytes. */
typedef struct {
    /* The zone's version when the slot was written last. */
    uint64_t version;
    /* Bytes of the slot as it is archived. */
    uint32_t size;
    uint32_t name_len;
} amesh_slot_entry_t;

/* Figures of the zone. */
typedef struct {
    uint64_t version;
    uint64_t size;
    uint64_t capacity;
    uint64_t used;
    uint64_t retired;
    uint64_t slots;
    uint64_t slots_max;
    uint64_t cells;
    uint64_t cells_max;
    uint64_t workers;
    uint64_t full_rejections;
} amesh_zone_stats_t;

/* AMESH_ABI_VERSION of the module that is loaded. */
uint32_t amesh_abi_version(void);
/* These declarations as C without preprocessor, terminated by zero, for ffi.cdef; they live as long as the process. */
const char *amesh_abi_cdef(void);
/* The module's version, terminated by zero. */
const char *amesh_module_version(void);
/* Which archived form the slots have: two modules that say the same read the same. */
uint64_t amesh_layout(void);

/* The zone's version: raised with everything that changes. One load. */
int amesh_zone_version(uint64_t *version);
/* AMESH_OK when any source has said anything yet, else AMESH_NOT_FOUND. */
int amesh_zone_ready(void);
int amesh_zone_stats(amesh_zone_stats_t *stats);

/*
 * All slots of a kind, by name, at one time: entries one after the other. `size` comes back with the bytes that they take,
 * `count` (which may be null) with their number. AMESH_NO_ROOM writes nothing else; the next call may need more.
 */
int amesh_slot_list(uint32_t kind, void *buffer, size_t capacity, size_t *size, size_t *count);
/* The version of a slot. */
int amesh_slot_version(uint32_t kind, const char *name, size_t name_len, uint64_t *version);
/*
 * A copy of a slot's archived bytes (see amesh_layout), which want a buffer aligned to 16 bytes. `size` comes back with
 * their number, `version` (which may be null) with the slot's version, also with AMESH_NO_ROOM.
 */
int amesh_slot_copy(uint32_t kind, const char *name, size_t name_len, void *buffer, size_t capacity, size_t *size,
                    uint64_t *version);

/* end of the declarations */

#ifdef __cplusplus
}
#endif

#endif
