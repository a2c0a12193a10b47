-- MessagePack, as far as the module writes it: no extension types.
local ffi = require "ffi"

local ffi_string, cast, new = ffi.string, ffi.cast, ffi.new
local error = error

local _M = {}

local bytes_ptr = ffi.typeof "const uint8_t *"
local float = ffi.typeof "union { float f; uint32_t n; }"
local double = ffi.typeof "union { double f; uint8_t b[8]; }"

-- A big-endian number of so many bytes.
local function number(p, at, length)
    local n = 0
    for i = at, at + length - 1 do
        n = n * 256 + p[i]
    end
    return n
end

local value

local function array(p, at, count)
    local t = {}
    for i = 1, count do
        t[i], at = value(p, at)
    end
    return t, at
end

local function map(p, at, count)
    local t = {}
    for _ = 1, count do
        local key, item
        key, at = value(p, at)
        item, at = value(p, at)
        t[key] = item
    end
    return t, at
end

local function text(p, at, length)
    return ffi_string(p + at, length), at + length
end

-- Sizes of lengths by the first byte: bin, str, array, map.
local LENGTHS = {
    [0xc4] = { 1, text }, [0xc5] = { 2, text }, [0xc6] = { 4, text },
    [0xd9] = { 1, text }, [0xda] = { 2, text }, [0xdb] = { 4, text },
    [0xdc] = { 2, array }, [0xdd] = { 4, array },
    [0xde] = { 2, map }, [0xdf] = { 4, map },
}
local UNSIGNED = { [0xcc] = 1, [0xcd] = 2, [0xce] = 4, [0xcf] = 8 }
local SIGNED = { [0xd0] = 1, [0xd1] = 2, [0xd2] = 4, [0xd3] = 8 }

function value(p, at)
    local tag = p[at]
    at = at + 1
    if tag < 0x80 then
        return tag, at
    elseif tag < 0x90 then
        return map(p, at, tag - 0x80)
    elseif tag < 0xa0 then
        return array(p, at, tag - 0x90)
    elseif tag < 0xc0 then
        return text(p, at, tag - 0xa0)
    elseif tag == 0xc0 then
        return nil, at
    elseif tag == 0xc2 or tag == 0xc3 then
        return tag == 0xc3, at
    elseif tag >= 0xe0 then
        return tag - 256, at
    end
    local long = LENGTHS[tag]
    if long then
        return long[2](p, at + long[1], number(p, at, long[1]))
    end
    local length = UNSIGNED[tag]
    if length then
        return number(p, at, length), at + length
    end
    length = SIGNED[tag]
    if length then
        local n = number(p, at, length)
        return p[at] >= 128 and n - 256 ^ length or n, at + length
    end
    if tag == 0xca then
        local u = new(float)
        u.n = number(p, at, 4)
        return u.f, at + 4
    elseif tag == 0xcb then
        local u = new(double)
        for i = 0, 7 do
            u.b[7 - i] = p[at + i]
        end
        return u.f, at + 8
    end
    error("no such type in MessagePack: " .. tag)
end

-- The value that begins at `p`.
function _M.decode(p)
    return (value(cast(bytes_ptr, p), 0))
end

return _M
