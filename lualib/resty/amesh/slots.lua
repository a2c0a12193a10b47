-- Names and versions of what the mesh has.
local ffi = require "ffi"
local native = require "resty.amesh.native"

local C = ffi.C
local ffi_string, cast = ffi.string, ffi.cast
local reason, with_room = native.reason, native.with_room
local u64 = ffi.new "uint64_t[1]"
local entry_ptr = ffi.typeof "const amesh_slot_entry_t *"
local ENTRY = ffi.sizeof "amesh_slot_entry_t"

local _M = {}

local KINDS = {
    listener = C.AMESH_LISTENER,
    route_table = C.AMESH_ROUTE_TABLE,
    cluster = C.AMESH_CLUSTER,
    endpoints = C.AMESH_ENDPOINT_SET,
}

-- The number of a kind, by its name.
function _M.kind(name)
    local kind = KINDS[name]
    if not kind then
        error("no such kind of resource: \"" .. tostring(name)
            .. "\", it is \"listener\", \"route_table\", \"cluster\" or \"endpoints\"", 3)
    end
    return kind
end

-- The version of the whole mesh: another one, and something has changed. One load of memory.
function _M.version()
    local rc = C.amesh_zone_version(u64)
    if rc ~= 0 then
        return nil, reason(rc)
    end
    return tonumber(u64[0])
end

-- Whether any source has said anything yet.
function _M.ready()
    local rc = C.amesh_zone_ready()
    if rc == C.AMESH_NOT_FOUND then
        return false
    end
    if rc ~= 0 then
        return nil, reason(rc)
    end
    return true
end

-- The version of one resource; nil where there is none.
function _M.version_of(kind, name)
    local rc = C.amesh_slot_version(_M.kind(kind), name, #name, u64)
    if rc ~= 0 then
        return nil, reason(rc)
    end
    return tonumber(u64[0])
end

local function list(buffer, capacity, size, kind)
    return C.amesh_slot_list(kind, buffer, capacity, size, nil)
end

-- Names of a kind in their order, and their versions in the same order.
function _M.names(kind)
    local rc, buffer, size = with_room(list, _M.kind(kind))
    if rc ~= 0 then
        return nil, reason(rc)
    end
    local names, versions, n, at = {}, {}, 0, 0
    while at < size do
        local entry = cast(entry_ptr, buffer + at)
        n = n + 1
        names[n] = ffi_string(buffer + at + ENTRY, entry.name_len)
        versions[n] = tonumber(entry.version)
        at = at + math.ceil((ENTRY + entry.name_len) / 8) * 8
    end
    return names, versions
end

local figures = ffi.new "amesh_zone_stats_t"

-- Sizes and counts of the zone.
function _M.stats()
    local rc = C.amesh_zone_stats(figures)
    if rc ~= 0 then
        return nil, reason(rc)
    end
    return {
        version = tonumber(figures.version),
        size_bytes = tonumber(figures.size),
        capacity_bytes = tonumber(figures.capacity),
        used_bytes = tonumber(figures.used),
        retired_bytes = tonumber(figures.retired),
        slots = tonumber(figures.slots),
        slots_max = tonumber(figures.slots_max),
        cells = tonumber(figures.cells),
        cells_max = tonumber(figures.cells_max),
        workers = tonumber(figures.workers),
        full_rejections = tonumber(figures.full_rejections),
    }
end

return _M
