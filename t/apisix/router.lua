-- APISIX's default router, by host and path: the exact host, then wildcards, then routes without a host; within one the
-- exact path, then the longest prefix; and only within one path the priority.
local expr = require "expr"

local _M = {}

local function hosts_of(route)
    return route.hosts or route.host and { route.host } or { "" }
end

local function contains(list, value)
    for _, one in ipairs(list) do
        if one == value then
            return true
        end
    end
    return false
end

-- How well a host pattern fits: larger is better, nil is not at all.
local function rank(pattern, host)
    pattern = pattern:lower()
    if pattern == "" or pattern == "*" then
        return 0
    elseif pattern == host then
        return 1000
    elseif pattern:sub(1, 1) == "*" and host:sub(-(#pattern - 1)) == pattern:sub(2) then
        return #pattern
    end
end

local function path_rank(pattern, path)
    if pattern:sub(-1) == "*" then
        local prefix = pattern:sub(1, -2)
        return path:sub(1, #prefix) == prefix and #prefix or nil
    end
    return pattern == path and 100000 or nil
end

local function meets(route)
    if route.status == 0 or route.methods and not contains(route.methods, ngx.req.get_method()) then
        return false
    end
    return not route.vars or #route.vars == 0 or expr.eval(route.vars)
end

-- The item whose route takes the request.
function _M.match(items)
    local host, path = (ngx.var.host or ""):lower(), ngx.var.uri
    local found = {}
    for _, item in ipairs(items) do
        local route = item.value
        for _, of in ipairs(hosts_of(route)) do
            local by_host = rank(of, host)
            for _, pattern in ipairs(by_host and (route.uris or { route.uri }) or {}) do
                local by_path = path_rank(pattern, path)
                if by_path then
                    found[#found + 1] = { by_host, by_path, route.priority or 0, item }
                end
            end
        end
    end
    table.sort(found, function(a, b)
        for i = 1, 3 do
            if a[i] ~= b[i] then
                return a[i] > b[i]
            end
        end
        return a[4].key < b[4].key
    end)
    for _, one in ipairs(found) do
        if meets(one[4].value) then
            return one[4]
        end
    end
end

return _M
