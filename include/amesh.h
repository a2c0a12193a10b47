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
    /* There is no request here: a timer, or a phase without one; or one of HTTP/0.9, which has no headers. */
    AMESH_NO_REQUEST = 3,
    /* Why there is no endpoint: the request has no route, the cluster is not there, */
    AMESH_NO_ROUTE = 16,
    AMESH_NO_CLUSTER = 17,
    /* has no endpoint that may be asked, no room for more (its circuit breaker), or wants what is not supported. */
    AMESH_NO_HEALTHY_UPSTREAM = 18,
    AMESH_OVERFLOW = 19,
    AMESH_REFUSED = 20,
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

typedef struct {
    amesh_str_t name;
    amesh_str_t value;
} amesh_header_t;

/*
 * A request that is asked about. Of the texts only `path` must be there; names of headers are lower case. It goes to the
 * route table `table`, as behind a connection manager of Envoy's defaults; or to the listener `listener`; or, where both
 * are empty, to the listener that takes connections to `destination` ("ip:port").
 */
typedef struct {
    amesh_str_t           method;
    amesh_str_t           authority;
    amesh_str_t           path;
    const amesh_header_t *headers;
    size_t                headers_count;
    amesh_str_t           table;
    amesh_str_t           listener;
    amesh_str_t           destination;
    /* The client, "ip:port". */
    amesh_str_t           source;
    /* What filter chains match: SNI, and ALPN joined by commas. */
    amesh_str_t           server_name;
    amesh_str_t           application_protocols;
    uint32_t              tls;
    uint32_t              inbound;
    uint32_t              http2;
} amesh_request_t;

/* What is done to a header. Of one name all that is done follows one another, in this order. */
typedef struct {
    amesh_str_t name;
    amesh_str_t value;
    /* AMESH_REMOVE (there is no value), AMESH_SET, AMESH_APPEND (a further line). */
    uint32_t    op;
    uint32_t    unused;
} amesh_header_edit_t;

enum {
    AMESH_REMOVE = 0,
    AMESH_SET = 1,
    AMESH_APPEND = 2
};

/* What becomes of a request. Its texts and lists stand in the caller's buffer. Times are in ms, 0 is none. */
typedef struct {
    /* The zone's version that it was decided by. */
    uint64_t                   version;
    amesh_str_t                listener;
    amesh_str_t                virtual_host;
    amesh_str_t                route;
    amesh_str_t                virtual_cluster;
    amesh_str_t                cluster;
    /* The endpoint that the first try goes to: "ip:port" or the path of a socket. Nothing counts that it was named. */
    amesh_str_t                endpoint;
    /* Its address without the port, and the port; "unix:" and the path, and 0. */
    amesh_str_t                address;
    uint32_t                   port;
    /* 1 or 2: HTTP/1.1 or HTTP/2 to the endpoint. */
    uint32_t                   http;
    /* Host and path as they go upstream. */
    amesh_str_t                authority;
    amesh_str_t                path;
    /* Envoy's response flags; "-" for none. */
    amesh_str_t                flags;
    /* An answer without an upstream; status 0: there is none, and the request is forwarded. */
    amesh_str_t                body;
    amesh_str_t                content_type;
    amesh_str_t                location;
    uint32_t                   status;
    /* The status of gRPC; UINT32_MAX: that of the status of HTTP. */
    uint32_t                   grpc_status;
    /* It is a call of gRPC: the answer is to be one. */
    uint32_t                   grpc;
    /* Tries after the first, and for what: words of Envoy's retry_on, joined by commas. */
    uint32_t                   retries;
    amesh_str_t                retry_on;
    /* A fault holds it so long. */
    uint64_t                   delay;
    uint64_t                   connect_timeout;
    uint64_t                   timeout;
    uint64_t                   per_try_timeout;
    uint64_t                   per_try_idle_timeout;
    uint64_t                   idle_timeout;
    uint64_t                   max_stream_duration;
    /* What is done to the request's headers on their way upstream, but for the host. */
    const amesh_header_edit_t *request_headers;
    size_t                     request_headers_count;
    /* What the route and filters do to the response's, as far as it can be told before there is one. */
    const amesh_header_edit_t *response_headers;
    size_t                     response_headers_count;
} amesh_decision_t;

/* The endpoint of a try. Times are in ms, 0 is none. */
typedef struct {
    /* Without the port; IPv6 in brackets; "unix:" and the path. */
    char     address[120];
    uint32_t address_len;
    uint32_t port;
    /* 1 for the first try. */
    uint32_t attempt;
    uint32_t unused;
    uint64_t connect_timeout;
    uint64_t idle_timeout;
} amesh_peer_t;

/* What is known of an endpoint, and what was counted by all workers. */
typedef struct {
    amesh_str_t address;
    amesh_str_t hostname;
    uint32_t    weight;
    uint32_t    priority;
    /* In all: 0 healthy, 1 degraded, 2 not healthy. */
    uint32_t    health;
    /* What active checks found: 0 there are none, 1 nothing yet, 2 passed, 3 degraded, 4 failed. */
    uint32_t    checked;
    /* Outlier detection has it out. */
    uint32_t    ejected;
    uint32_t    refused;
    uint64_t    rq_active;
    uint64_t    rq_total;
    uint64_t    rq_error;
    uint64_t    cx_connect_fail;
} amesh_endpoint_t;

/* A cluster's endpoints, in the caller's buffer, and its own figures. */
typedef struct {
    const amesh_endpoint_t *endpoints;
    size_t                  endpoints_count;
    uint64_t                rq_total;
    /* Counted where the cluster has limits. */
    uint64_t                rq_active;
    uint64_t                cx_active;
    uint64_t                rq_retry_active;
    /* Endpoints that were found not healthy at run time, and those of them that are ejected. */
    uint64_t                unhealthy;
    uint64_t                ejected;
} amesh_cluster_t;

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

/*
 * A slot as MessagePack: maps by the names of fields, which are Envoy's; enumerations are their variant's name, or a map of
 * that name and its content; addresses are text, times ms. `size` and `version` as in amesh_slot_copy.
 */
int amesh_slot_msgpack(uint32_t kind, const char *name, size_t name_len, void *buffer, size_t capacity, size_t *size,
                       uint64_t *version);
/* The health of a cluster and of its endpoints. */
int amesh_cluster_state(const char *name, size_t name_len, void *buffer, size_t capacity, size_t *size,
                        amesh_cluster_t *state);

/*
 * What the data plane decides on a request, by the very code that it runs; nothing is changed or counted by it. Asked about
 * is `asked`, or, where that is null, the request `r` (ngx_http_request_t), which is decided by the listener that its
 * connection came to. A request that was decided already is told of as it was decided; its headers' edits are done then.
 * With `r` and `asked` both the request is `r`, and only `table`, `listener`, `destination` and `inbound` of the other count.
 */
int amesh_decide(void *r, const amesh_request_t *asked, void *buffer, size_t capacity, size_t *size,
                 amesh_decision_t *decision);
/*
 * Decides the request `r` for good, in a phase before content of a server that has no "amesh" of its own: its headers are
 * edited, and the content phase answers or forwards it as in a server with "amesh outbound" (or "inbound").
 */
int amesh_route(void *r, uint32_t inbound, void *buffer, size_t capacity, size_t *size, amesh_decision_t *decision);

/*
 * The endpoint of the try that a balancer of the request `r` is asked for just now: of the cluster that the request's route
 * says, or of `cluster`, where that is not empty. Tries, pauses, time-outs and what is counted are the module's from then
 * on: by the route's policy the balancer is asked again, or not.
 */
int amesh_balancer_pick(void *r, const char *cluster, size_t cluster_len, amesh_peer_t *peer);

/* end of the declarations */

#ifdef __cplusplus
}
#endif

#endif
