-- Calls back when the mesh has changed: one timer a worker, which costs one load of memory where nothing has.
local slots = require "resty.amesh.slots"

local _M = {}

local INTERVAL = 0.1

local watchers = {}
local seen
local running = false

local function tell(premature)
    if premature then
        return
    end
    local version = slots.version()
    if not version or version == seen then
        return
    end
    local before = seen
    seen = version
    for _, watcher in ipairs(watchers) do
        local ok, why = pcall(watcher, version, before)
        if not ok then
            ngx.log(ngx.ERR, "amesh: a function given to amesh.on_change failed: ", why)
        end
    end
end

-- Has f(version, before) called in this worker, within 100 ms, whenever anything has changed. One call tells of all
-- changes since the last one.
function _M.on_change(f)
    if type(f) ~= "function" then
        error("amesh.on_change wants a function", 2)
    end
    local version, why = slots.version()
    if not version then
        return nil, why
    end
    if not running then
        seen = version
        local ok, failed = ngx.timer.every(INTERVAL, tell)
        if not ok then
            return nil, "no timer for amesh.on_change: " .. failed
        end
        running = true
    end
    watchers[#watchers + 1] = f
    return true
end

return _M
