-- The C interface of ngx_amesh_module (docs/abi.md): found, declared by the module itself, and wrapped so that errors are texts.
local ffi = require "ffi"

local C = ffi.C
local ffi_string = ffi.string
local new = ffi.new
local rshift = bit.rshift

-- The interface that this library was written for.
local MAJOR, MINOR = 1, 0

-- With lua_code_cache off this file runs in a new VM each time; within one VM it runs once.
if not pcall(ffi.typeof, "amesh_str_t") then
    ffi.cdef "uint32_t amesh_abi_version(void); const char *amesh_abi_cdef(void);"
    local found, version = pcall(function() return C.amesh_abi_version() end)
    if not found then
        error("ngx_amesh_module is not loaded: add \"load_module modules/ngx_amesh_module.so;\" to nginx.conf", 0)
    end
    if rshift(version, 16) ~= MAJOR or version % 0x10000 < MINOR then
        error("resty.amesh is for version " .. MAJOR .. "." .. MINOR .. " of the module's C interface, and the module has "
            .. rshift(version, 16) .. "." .. version % 0x10000 .. ": install the lualib that came with it", 0)
    end
    ffi.cdef(ffi_string(C.amesh_abi_cdef()))
end

local _M = {}

local ERRORS = {
    [C.AMESH_NOT_FOUND] = "not found",
    [C.AMESH_NO_REQUEST] = "there is no request",
    [C.AMESH_BAD_ARGUMENT] = "an argument makes no sense",
    [C.AMESH_FAILED] = "the module failed: see the error log",
}

-- The text of what a function returned.
function _M.reason(rc)
    if rc == C.AMESH_NO_ZONE then
        if ngx.get_phase() == "init" then
            return "the zone cannot be read in init_by_lua*: use init_worker_by_lua* or later"
        end
        return "this process reads no zone: nginx.conf has no \"amesh { zone …; }\" block"
    end
    return ERRORS[rc] or "code " .. tonumber(rc)
end

-- A buffer that grows, one for all calls: what it holds is read before anything can yield.
local capacity = 16384
local buffer = new("char[?]", capacity)
local size = new "size_t[1]"

-- Calls f(buffer, capacity, size, ...) until there is room. Returns its code.
function _M.with_room(f, ...)
    local rc = f(buffer, capacity, size, ...)
    while rc == C.AMESH_NO_ROOM do
        capacity = tonumber(size[0]) * 2
        buffer = new("char[?]", capacity)
        rc = f(buffer, capacity, size, ...)
    end
    return rc, buffer, tonumber(size[0])
end

-- A text of the interface; nil for none.
function _M.str(s)
    if s.len == 0 then
        return nil
    end
    return ffi_string(s.data, s.len)
end

return _M
