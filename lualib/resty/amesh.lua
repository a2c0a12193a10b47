-- The mesh in Lua: docs/lua.md.
local decide = require "resty.amesh.decide"
local resources = require "resty.amesh.resources"
local slots = require "resty.amesh.slots"
local watch = require "resty.amesh.watch"

return {
    decide = decide.decide,
    route = decide.route,
    balancer = require "resty.amesh.balancer",
    get = resources.get,
    each = resources.each,
    names = slots.names,
    version = slots.version,
    version_of = slots.version_of,
    ready = slots.ready,
    on_change = watch.on_change,
    health = resources.health,
    stats = slots.stats,
}
