-- What APISIX's schema accepts, as far as objects of the mesh come near its edges. An object that it refuses is absent.
local _M = {}

local function set(...)
    local all = {}
    for name in table.concat({ ... }, " "):gmatch("%S+") do
        all[name] = true
    end
    return all
end

local common = "id name desc labels create_time update_time"
local fields = {
    ["/routes"] = set(common, "uri uris priority methods host hosts remote_addr remote_addrs timeout vars filter_func script",
        "plugins plugin_config_id upstream upstream_id service_id enable_websocket status"),
    ["/upstreams"] = set(common, "nodes type hash_on key retries retry_timeout timeout tls keepalive_pool checks scheme",
        "pass_host upstream_host service_name discovery_type discovery_args"),
    ["/services"] = set(common, "hosts upstream upstream_id plugins script enable_websocket"),
    ["/plugin_configs"] = set(common, "plugins"),
    ["/ssls"] = set(common, "type cert key certs keys client sni snis ssl_protocols status"),
}
local schemes = set("http https grpc grpcs tcp udp tls kafka")
local pass_hosts = set("pass node rewrite")
local hash_ons = set("vars header cookie consumer vars_combinations")

local function whole(value, least)
    return type(value) == "number" and value == math.floor(value) and value >= least
end

local function timeout(value)
    if type(value) ~= "table" then
        return false, "timeout is no object"
    end
    for _, member in ipairs { "connect", "send", "read" } do
        if type(value[member]) ~= "number" or value[member] <= 0 then
            return false, "timeout." .. member .. " is not greater than 0"
        end
    end
    return true
end

local function known(object, names)
    for name in pairs(object) do
        if not names[name] then
            return false, "additional properties forbidden, found " .. name
        end
    end
    return true
end

local function upstream(object)
    local ok, err = known(object, fields["/upstreams"])
    if not ok then
        return ok, err
    end
    if type(object.nodes) ~= "table" and not object.service_name then
        return false, "neither nodes nor service_name"
    end
    for host, node in pairs(object.nodes or {}) do
        local weight = type(node) == "table" and node.weight or node
        if type(node) == "table" and (type(node.host) ~= "string" or node.port and not whole(node.port, 1)) then
            return false, "a node without host or with a bad port"
        end
        if type(node) ~= "table" and type(host) ~= "string" or not whole(weight, 0) then
            return false, "the weight of a node is no integer"
        end
    end
    if object.scheme and not schemes[object.scheme] or object.pass_host and not pass_hosts[object.pass_host]
        or object.hash_on and not hash_ons[object.hash_on] then
        return false, "scheme, pass_host or hash_on is none of those that there are"
    end
    if object.retries and not whole(object.retries, 0) then
        return false, "retries is no integer"
    end
    if object.timeout then
        return timeout(object.timeout)
    end
    return true
end

local function route(object)
    if not object.uri and not object.uris then
        return false, "neither uri nor uris"
    end
    if not (object.plugins or object.upstream or object.upstream_id or object.service_id or object.script) then
        return false, "it leads nowhere"
    end
    for _, host in ipairs(object.hosts or { object.host }) do
        if host ~= "*" and not host:match("^%*?[0-9a-zA-Z%-%._%[%]:]+$") then
            return false, "host " .. host
        end
    end
    if object.priority and not whole(object.priority, -2 ^ 31) then
        return false, "priority is no integer"
    end
    for name, conf in pairs(object.plugins or {}) do
        local percentage = name == "fault-injection" and (conf.abort or conf.delay or {}).percentage
        if percentage and not whole(percentage, 0) then
            return false, "percentage is no integer"
        end
    end
    if object.upstream then
        local ok, err = upstream(object.upstream)
        if not ok then
            return ok, err
        end
    end
    return not object.timeout or timeout(object.timeout)
end

-- Whether an object of a directory is accepted, and why not.
function _M.check(directory, object)
    local id = object.id
    if id ~= nil and not (type(id) == "number" and whole(id, 1)
        or type(id) == "string" and #id <= 64 and id:match("^[%w%-_.]+$")) then
        return false, "id"
    end
    if fields[directory] then
        local ok, err = known(object, fields[directory])
        if not ok then
            return ok, err
        end
    end
    if directory == "/routes" then
        return route(object)
    elseif directory == "/upstreams" then
        return upstream(object)
    end
    return true
end

return _M
