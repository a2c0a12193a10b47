-- Resources as tables, made when they are first asked for, and kept by each worker until the slot has another version.
local ffi = require "ffi"
local native = require "resty.amesh.native"
local msgpack = require "resty.amesh.msgpack"
local slots = require "resty.amesh.slots"

local C = ffi.C
local ffi_string = ffi.string
local reason, with_room, str = native.reason, native.with_room, native.str
local u64 = ffi.new "uint64_t[1]"

local _M = {}

-- By kind and name: { version, table }.
local kept = {}
-- The zone's version when names that are gone were last forgotten.
local swept = 0

local function pack(buffer, capacity, size, kind, name)
    return C.amesh_slot_msgpack(kind, name, #name, buffer, capacity, size, u64)
end

-- What is gone from the mesh is not kept for ever.
local function sweep()
    local now = slots.version()
    if not now or now == swept then
        return
    end
    swept = now
    for kind, of_kind in pairs(kept) do
        for name in pairs(of_kind) do
            if C.amesh_slot_version(kind, name, #name, u64) ~= 0 then
                of_kind[name] = nil
            end
        end
    end
end

local function get(kind, name)
    local of_kind = kept[kind]
    if not of_kind then
        of_kind = {}
        kept[kind] = of_kind
    end
    local rc = C.amesh_slot_version(kind, name, #name, u64)
    if rc ~= 0 then
        of_kind[name] = nil
        return nil, reason(rc)
    end
    local found, version = of_kind[name], tonumber(u64[0])
    if found and found[1] == version then
        return found[2], version
    end
    local buffer
    rc, buffer = with_room(pack, kind, name)
    if rc ~= 0 then
        return nil, reason(rc)
    end
    version = tonumber(u64[0])
    local value = msgpack.decode(buffer)
    if not found then
        sweep()
    end
    of_kind[name] = { version, value }
    return value, version
end

-- A resource and its version; nil and why not. The table is shared by all of this worker: it is not to be changed.
function _M.get(kind, name)
    return get(slots.kind(kind), name)
end

-- Iterates over a kind in the order of names: name, resource, version.
function _M.each(kind)
    local number = slots.kind(kind)
    local names, why = slots.names(kind)
    if not names then
        error(why, 2)
    end
    local i = 0
    return function()
        while true do
            i = i + 1
            local name = names[i]
            if not name then
                return nil
            end
            local value, version = get(number, name)
            -- One that is gone meanwhile is passed over.
            if value then
                return name, value, version
            end
        end
    end
end

local cluster = ffi.new "amesh_cluster_t"
local HEALTH = { [0] = "healthy", "degraded", "unhealthy" }
local CHECKED = { "pending", "passed", "degraded", "failed" }

local function state(buffer, capacity, size, name)
    return C.amesh_cluster_state(name, #name, buffer, capacity, size, cluster)
end

-- The health of a cluster's endpoints, and what all workers counted.
function _M.health(name)
    local rc = with_room(state, name)
    if rc ~= 0 then
        return nil, reason(rc)
    end
    local endpoints = {}
    for i = 0, tonumber(cluster.endpoints_count) - 1 do
        local e = cluster.endpoints[i]
        endpoints[i + 1] = {
            address = ffi_string(e.address.data, e.address.len),
            hostname = str(e.hostname),
            weight = e.weight,
            priority = e.priority,
            health = HEALTH[e.health],
            active_health_check = CHECKED[e.checked],
            ejected = e.ejected ~= 0,
            refused = e.refused ~= 0,
            rq_active = tonumber(e.rq_active),
            rq_total = tonumber(e.rq_total),
            rq_error = tonumber(e.rq_error),
            cx_connect_fail = tonumber(e.cx_connect_fail),
        }
    end
    return {
        endpoints = endpoints,
        rq_total = tonumber(cluster.rq_total),
        rq_active = tonumber(cluster.rq_active),
        cx_active = tonumber(cluster.cx_active),
        rq_retry_active = tonumber(cluster.rq_retry_active),
        unhealthy = tonumber(cluster.unhealthy),
        ejected = tonumber(cluster.ejected),
    }
end

return _M
