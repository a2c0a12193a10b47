-- A small APISIX: enough of its phases to send requests where the objects say.
local balancer = require "ngx.balancer"
local router = require "router"
local expr = require "expr"
local xds = require "xds"

local _M = { init = xds.init, init_worker = xds.init_worker }

local function chosen(percentage)
    return not percentage or math.random(100) <= percentage
end

local function refuse(status, body)
    ngx.status = status
    ngx.print(body or "")
    return ngx.exit(status)
end

local function filled(text)
    return (text:gsub("%$([%w_]+)", function(name) return ngx.var[name] or "" end))
end

local function edit(headers, set, clear, add)
    for name, value in pairs(headers.set or {}) do
        set(name, filled(tostring(value)))
    end
    for name, value in pairs(headers.add or {}) do
        add(name, filled(tostring(value)))
    end
    for _, name in ipairs(headers.remove or {}) do
        clear(name)
    end
end

-- Plugins of the access phase, those of the largest priority first.
local plugins = {
    { "fault-injection", function(conf)
        local delay, abort = conf.delay, conf.abort
        if delay and chosen(delay.percentage) and (not delay.vars or expr.eval(delay.vars)) then
            ngx.sleep(delay.duration)
        end
        if abort and chosen(abort.percentage) and (not abort.vars or expr.eval(abort.vars)) then
            return refuse(abort.http_status, abort.body)
        end
    end },
    { "proxy-rewrite", function(conf, ctx)
        local uri = ngx.var.uri
        if conf.regex_uri then
            uri = ngx.re.sub(uri, conf.regex_uri[1], conf.regex_uri[2], "jo")
        end
        uri = conf.uri and filled(conf.uri) or uri
        ctx.uri = uri .. (ngx.var.is_args or "") .. (ngx.var.args or "")
        if conf.host then
            ctx.host = conf.host
        end
        edit(conf.headers or {}, ngx.req.set_header, ngx.req.clear_header, function(name, value)
            local had = ngx.req.get_headers()[name]
            ngx.req.set_header(name, had and { had, value } or value)
        end)
    end },
    { "traffic-split", function(conf, ctx)
        local all = conf.rules[1].weighted_upstreams
        local total = 0
        for _, one in ipairs(all) do
            total = total + (one.weight or 1)
        end
        local at = math.random() * total
        for _, one in ipairs(all) do
            at = at - (one.weight or 1)
            if at < 0 then
                ctx.upstream_id, ctx.upstream = one.upstream_id or ctx.upstream_id, one.upstream
                return
            end
        end
    end },
    { "redirect", function(conf)
        local uri = conf.uri and filled(conf.uri)
        if conf.regex_uri then
            uri = ngx.re.sub(ngx.var.uri, conf.regex_uri[1], conf.regex_uri[2], "jo")
        elseif conf.http_to_https then
            uri = "https://" .. ngx.var.host .. ngx.var.request_uri
        end
        ngx.header["Location"] = uri
        return refuse(conf.ret_code or 302)
    end },
}

function _M.access()
    local item = router.match(xds.all("/routes"))
    if not item then
        return refuse(404, '{"error_msg":"404 Route Not Found"}\n')
    end
    local route = item.value
    if item.key ~= "/routes/" .. tostring(route.id) or type(route.id) ~= "string" then
        ngx.log(ngx.ERR, "id of ", item.key)
        return refuse(500)
    end
    local ctx = { route = route, uri = ngx.var.request_uri, upstream_id = route.upstream_id, upstream = route.upstream }
    ngx.ctx.api = ctx
    -- A plugin of the route's own goes before one of its plugin_config.
    local shared = route.plugin_config_id and xds.get("/plugin_configs", route.plugin_config_id)
    if route.plugin_config_id and not shared then
        ngx.log(ngx.ERR, "no plugin_config ", route.plugin_config_id)
        return refuse(503)
    end
    ctx.plugins = setmetatable(route.plugins or {}, { __index = shared and shared.plugins })
    for _, plugin in ipairs(plugins) do
        local conf = ctx.plugins[plugin[1]]
        if conf then
            plugin[2](conf, ctx)
        end
    end
    local upstream = ctx.upstream or ctx.upstream_id and xds.get("/upstreams", ctx.upstream_id)
    if not upstream then
        ngx.log(ngx.ERR, "no upstream ", ctx.upstream_id)
        return refuse(502)
    end
    ctx.nodes = {}
    for host, node in pairs(upstream.nodes) do
        if type(node) ~= "table" then
            node = { host = host:match("^(.*):%d+$"), port = tonumber(host:match("%d+$")), weight = node }
        end
        if node.weight > 0 then
            ctx.nodes[#ctx.nodes + 1] = node
        end
    end
    if #ctx.nodes == 0 then
        return refuse(503)
    end
    ctx.picked, ctx.conf = upstream, route.timeout or upstream.timeout
    ngx.var.upstream_uri = ctx.uri
    local host = ctx.host or upstream.pass_host == "rewrite" and upstream.upstream_host
    ngx.var.upstream_host = host or ngx.var.http_host
end

local function pick(ctx)
    local best
    for _, node in ipairs(ctx.nodes) do
        local priority = node.priority or 0
        best = best and math.max(best, priority) or priority
    end
    local total, at, level = 0, nil, {}
    for i, node in ipairs(ctx.nodes) do
        if (node.priority or 0) == best then
            total = total + node.weight
            level[#level + 1] = i
        end
    end
    at = math.random() * total
    for _, i in ipairs(level) do
        at = at - ctx.nodes[i].weight
        if at < 0 or i == level[#level] then
            return table.remove(ctx.nodes, i)
        end
    end
end

function _M.balancer()
    local ctx = ngx.ctx.api
    if not ctx.tried then
        ctx.tried = true
        local tries = math.min(ctx.picked.retries or #ctx.nodes - 1, #ctx.nodes - 1)
        if tries > 0 then
            balancer.set_more_tries(tries)
        end
        if ctx.conf then
            balancer.set_timeouts(ctx.conf.connect, ctx.conf.send, ctx.conf.read)
        end
    end
    local node = pick(ctx)
    assert(balancer.set_current_peer(node.host, node.port))
end

function _M.header_filter()
    local ctx = ngx.ctx.api
    local conf = ctx and ctx.plugins and ctx.plugins["response-rewrite"]
    if conf and conf.headers then
        local function set(name, value) ngx.header[name] = value end
        edit(conf.headers, set, function(name) ngx.header[name] = nil end, set)
    end
end

return _M
