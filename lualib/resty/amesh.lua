-- The mesh in Lua: docs/lua.md.
local slots = require "resty.amesh.slots"

return {
    version = slots.version,
    version_of = slots.version_of,
    ready = slots.ready,
    names = slots.names,
    stats = slots.stats,
}
