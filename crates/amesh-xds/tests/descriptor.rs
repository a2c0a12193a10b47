//! What people write is read, and what they mistype is named.

use amesh_xds::descriptor::{self, Error, Resource};
use amesh_xds::translate::{self, Notes};
use envoy_types::pb::envoy::config as pb;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

const CLUSTER: &str = r#"
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: demo
type: STATIC
connect_timeout: 0.25s
lb_policy: LEAST_REQUEST
commonLbConfig: { healthyPanicThreshold: { value: 12.4 } }
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: { http2_protocol_options: { max_concurrent_streams: 7 } }
load_assignment:
  cluster_name: demo
  endpoints:
  - lb_endpoints:
    - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 8080 } } }
      load_balancing_weight: 3
"#;

fn open<M: Message + Default>(any: &Any) -> M {
    M::decode(any.value.as_slice()).unwrap()
}

fn names(list: &[Resource]) -> Vec<&str> {
    list.iter().map(|r| r.name.as_str()).collect()
}

#[test]
fn a_cluster_as_people_write_it() {
    let list = descriptor::from_yaml("a.yaml", CLUSTER).unwrap();
    assert_eq!(names(&list), ["demo"]);
    let c = translate::cluster(&open(&list[0].any), &mut Notes::new()).unwrap();
    assert_eq!((c.cluster.connect_timeout, c.cluster.healthy_panic_threshold), (250, 12));
    assert_eq!(c.cluster.protocol, amesh_model::cluster::UpstreamProtocol::Http2);
    let translate::Source::Inline(set) = c.source else { panic!() };
    assert_eq!(set.localities[0].endpoints[0].address.to_string(), "127.0.0.1:8080");
}

#[test]
fn the_shapes_of_a_document() {
    let table = r#"{"@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "name": "t"}"#;
    let cla = r#"{"@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "clusterName": "c"}"#;
    let json = |t: &str| descriptor::from_json("x.json", t).unwrap();
    assert_eq!(names(&json(table)), ["t"]);
    assert_eq!(names(&json(&format!("[{table},{cla}]"))), ["t", "c"]);
    assert_eq!(names(&json(&format!(r#"{{"version_info": "1", "resources": [{cla}]}}"#))), ["c"]);
    assert_eq!(json("[]"), []);
    let many = descriptor::from_yaml("x.yaml", &format!("{table}\n---\n# nothing\n---\n- {cla}\n- {table}\n")).unwrap();
    assert_eq!(names(&many), ["t", "c", "t"]);
    let bootstrap = "static_resources:\n  clusters:\n  - name: a\n  - name: b\n  listeners:\n  - name: l\n";
    let list = descriptor::from_yaml("x.yaml", bootstrap).unwrap();
    assert_eq!(names(&list), ["a", "b", "l"]);
    assert_eq!(list[2].any.type_url, translate::LISTENER);
}

#[test]
fn a_version_is_of_what_is_said_not_of_how() {
    let v = |t: &str| descriptor::from_yaml("x", t).unwrap()[0].version.clone();
    let t = "\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\n";
    assert_eq!(v(&format!("{t}name: a\n")), v(&format!("# more\nname:   \"a\"\n{t}")));
    assert_ne!(v(&format!("{t}name: a\n")), v(&format!("{t}name: b\n")));
}

#[test]
fn mistakes_are_named_with_file_document_resource_and_field() {
    for (from, to, field, reason) in [
        ("connect_timeout", "conect_timeout", "conect_timeout", "unrecognized field name"),
        ("0.25s", "250ms", "connect_timeout", "duration"),
        ("LEAST_REQUEST", "LEAST", "lb_policy", "unrecognized enum value"),
        (
            "port_value: 8080",
            "port: 8080",
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port",
            "unrecognized",
        ),
        ("max_concurrent_streams: 7", "streams: 7", "typed_extension_protocol_options", "streams"),
        ("HttpProtocolOptions\n", "HttpOptions\n", "typed_extension_protocol_options", "HttpOptions"),
        ("config.cluster.v3.Cluster", "config.cluster.v9.Cluster", "@type", "no type of Envoy's"),
    ] {
        let text = format!("null\n---\n{}", CLUSTER.replace(from, to));
        let e = descriptor::from_yaml("dir/a.yaml", &text).unwrap_err();
        let Error::Resource { file, document, resource, field: at, reason: why } = &e else { panic!("{e}") };
        assert_eq!((file.as_str(), *document, resource.as_str()), ("dir/a.yaml", 2, "demo"), "{e}");
        assert!(at.starts_with(field), "{e}");
        assert!(why.contains(reason), "{e}");
    }
    let err = |t: &str| descriptor::from_yaml("a.yaml", t).unwrap_err().to_string();
    assert!(err("name: x").contains("@type"));
    assert!(err("a: [1").contains("a.yaml: document 1: "));
    assert!(err("name: x\nname: y").contains("duplicate"));
    assert!(err("static_resources: {clusters: []}\nadmin: {}").contains("admin"));
    assert!(err("static_resources: {secrets: []}").contains("secrets"));
    assert!(err("just text").contains("a text, not a resource"));
    assert!(descriptor::from_json("a.json", "{").unwrap_err().to_string().starts_with("a.json: document 1: "));
}

#[test]
fn bytes_of_maps_and_anys_are_those_of_the_protos() {
    let list = descriptor::from_yaml("a.yaml", CLUSTER).unwrap();
    let c: pb::cluster::v3::Cluster = open(&list[0].any);
    let any = &c.typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
    assert!(any.type_url.ends_with("HttpProtocolOptions"));
    assert_eq!(c.connect_timeout.unwrap().nanos, 250_000_000);
}

#[test]
fn a_duration_may_be_the_message_that_it_is() {
    use envoy_types::pb::envoy::config::route::v3::{route::Action, RouteConfiguration};
    let read = |timeout: &str| -> Result<RouteConfiguration, Error> {
        let route = format!("{{match: {{prefix: /}}, route: {{cluster: c, timeout: {timeout}}}}}");
        let text = format!("virtual_hosts: [{{name: a, domains: [\"*\"], routes: [{route}]}}]");
        descriptor::message("a.yaml", &text, amesh_xds::translate::ROUTE_CONFIGURATION)
    };
    let timeout = |text: &str| match read(text).unwrap().virtual_hosts.remove(0).routes.remove(0).action {
        Some(Action::Route(route)) => route.timeout.map(|t| (t.seconds, t.nanos)),
        _ => None,
    };
    assert_eq!(timeout("1.5s"), Some((1, 500_000_000)));
    assert_eq!(timeout("{seconds: 1, nanos: 500000000}"), Some((1, 500_000_000)));
    assert_eq!(timeout("{nanos: 0}"), Some((0, 0)));
    for bad in ["{seconds: 1, hours: 2}", "{seconds: 1, nanos: -1}", "{seconds: x}", "5"] {
        assert!(read(bad).unwrap_err().to_string().contains("virtual_hosts[0].routes[0].route.timeout"), "{bad}");
    }
}

#[test]
fn a_message_is_the_only_document_of_its_text() {
    use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
    let read = |text: &str| -> Result<RouteConfiguration, Error> {
        descriptor::message("a", text, amesh_xds::translate::ROUTE_CONFIGURATION)
    };
    assert_eq!(read("{\"name\": \"r\",\t\"virtual_hosts\": []}").unwrap().name, "r", "JSON with a tab");
    assert_eq!(read("{\"name\": \"r\", \"virtual_hosts\": [],}").unwrap().name, "r", "a comma at the end");
    let typed = format!("\"@type\": {}\nname: r", amesh_xds::translate::ROUTE_CONFIGURATION);
    assert_eq!(read(&typed).unwrap().name, "r");
    assert!(read("name: r\n---\nname: s").unwrap_err().to_string().contains("2 documents"));
    assert!(read("").is_err());
    assert!(read("\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: r").is_err());
}
