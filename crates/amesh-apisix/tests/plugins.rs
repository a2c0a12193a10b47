//! Plugins from the mesh.

mod common;
#[path = "../../amesh-dataplane/tests/common/mod.rs"]
mod model;

use amesh_apisix::plugins::{parse, PluginFiles, PluginSet};
use amesh_apisix::{Directory, Object, Options, Translator};
use amesh_model::batch::Value as Resource;
use amesh_model::listener::{ChainAction, FilterChain, FilterChainMatch, RouteSpecifier};
use common::{batch, cluster, json, put};
use proptest::prelude::*;
use std::collections::BTreeMap;

const LIMITS: &str = r#"
apiVersion: apisix.apache.org/v1alpha1
kind: AmeshPluginConfig
metadata: {name: limits, namespace: default, annotations: {a: b}}
spec:
  selector: {matchLabels: {app: web}}
  plugins:
  - name: limit-count
    config: '{"count": 2, "time_window": 60, "key": "remote_addr", "rejected_code": 429}'
"#;

const HEADERS: &str = r#"
apiVersion: apisix.apache.org/v1alpha1
kind: AmeshPluginConfig
metadata: {name: headers}
spec:
  plugins:
  - {name: response-rewrite, type: "", config: {headers: {X-Header: Added}}}
"#;

fn labels(all: &[(&str, &str)]) -> BTreeMap<String, String> {
    all.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

fn select(text: &str, all: &[(&str, &str)]) -> PluginSet {
    PluginSet::select(&parse("a.yaml", text).unwrap(), &labels(all))
}

/// A mesh with a route that forwards and one that does not.
fn mesh() -> Translator {
    let mut translator = Translator::new(Options::default());
    let refused = amesh_model::route::RouteAction::Refuse("a filter".into());
    let mut yes = model::route("yes", model::prefix("/yes"), model::to("c"));
    yes.headers.request_remove = vec!["x-a".into()];
    let routes = vec![model::route("no", model::path("/no"), refused), yes];
    let mut table = model::table(vec![(&["web"], model::virtual_host("web", routes))]);
    table.name = "t".into();
    table.ignore_port_in_host_matching = true;
    let mut manager = model::hcm();
    manager.routes = RouteSpecifier::Rds("t".into());
    let action = ChainAction::Http(Box::new(manager));
    let chain = FilterChain { name: String::new(), filter_chain_match: FilterChainMatch::default(), action };
    let mut listener = model::listener(vec![chain]);
    listener.addresses = vec!["10.0.0.1:80".parse::<std::net::SocketAddr>().unwrap().into()];
    translator.apply(&batch([put(cluster("c")), put(Resource::RouteTable(table)), put(Resource::Listener(listener))]));
    translator
}

fn keys(objects: &[Object]) -> Vec<Directory> {
    objects.iter().map(|object| object.key.directory).collect()
}

#[test]
fn a_rate_limit_is_put_on_routes_and_taken_off_again() {
    let mut translator = mesh();
    let before: Vec<Object> = translator.objects().cloned().collect();
    let on = translator.set_plugins(select(LIMITS, &[("app", "web")]));
    assert_eq!(keys(&on.put), [Directory::PluginConfigs, Directory::Routes], "what is named comes first");
    let (config, route) = (json(&on.put[0]), json(&on.put[1]));
    assert_eq!(config["plugins"]["limit-count"]["count"], 2);
    assert_eq!((&route["name"], &route["plugin_config_id"]), (&"yes".into(), &config["id"]));
    translator.objects().for_each(common::schema::assert_valid);

    let other = translator.set_plugins(select(&LIMITS.replace("\"count\": 2", "\"count\": 3"), &[("app", "web")]));
    assert_eq!((keys(&other.put), other.delete.len()), (vec![Directory::PluginConfigs], 0), "one object changes");

    let off = translator.set_plugins(PluginSet::default());
    assert_eq!(keys(&off.put), [Directory::Routes]);
    assert_eq!(off.delete, [on.put[0].key.clone()], "after the routes that named it");
    assert_eq!(translator.objects().cloned().collect::<Vec<_>>(), before);
    assert!(translator.set_plugins(PluginSet::default()).is_empty());
}

#[test]
fn only_selected_workloads_have_plugins() {
    assert!(select(LIMITS, &[("app", "other")]).is_empty());
    assert!(select(LIMITS, &[]).is_empty());
    assert!(!select(LIMITS, &[("app", "web"), ("version", "v1")]).is_empty());
    assert!(!select(HEADERS, &[]).is_empty(), "without a selector it is for all");
    let rules = |rules: &str| LIMITS.replace("matchLabels: {app: web}", &format!("matchExpressions: [{rules}]"));
    for (text, web, none) in [
        ("{key: app, operator: In, values: [web, x]}", true, false),
        ("{key: app, operator: NotIn, values: [web]}", false, true),
        ("{key: app, operator: Exists}", true, false),
        ("{key: app, operator: DoesNotExist}", false, true),
    ] {
        assert_eq!(!select(&rules(text), &[("app", "web")]).is_empty(), web, "{text}");
        assert_eq!(!select(&rules(text), &[]).is_empty(), none, "{text}");
    }
}

#[test]
fn of_two_plugins_of_a_name_the_later_stands_and_that_is_said() {
    let mut files = PluginFiles::default();
    let more = HEADERS.replace("Added", "Later");
    assert!(files.update([("b.yaml", more.as_str()), ("a.yaml", HEADERS)]).is_empty());
    let set = files.select(&labels(&[]));
    let refusals: Vec<_> = set.refusals().map(|r| (r.what.as_str(), r.reason.as_str())).collect();
    assert_eq!(
        refusals,
        [("plugin \"response-rewrite\" of a.yaml: headers", "b.yaml: headers has it, too; that one stands")]
    );
    let changes = mesh().set_plugins(set);
    assert_eq!(json(&changes.put[0])["plugins"]["response-rewrite"]["headers"]["X-Header"], "Later");
    assert_eq!(changes.refused.len(), 1);
}

#[test]
fn what_the_mesh_says_of_a_request_is_not_replaced() {
    let text = HEADERS.replace("response-rewrite", "proxy-rewrite");
    let changes = mesh().set_plugins(select(&text, &[]));
    let route = json(&changes.put[1]);
    assert_eq!(route["plugins"]["proxy-rewrite"]["headers"]["remove"][0], "x-a");
    let [refusal] = changes.refused.as_slice() else { panic!("{:?}", changes.refused) };
    assert!(
        refusal.what.ends_with("route 1 \"yes\"") && refusal.reason.contains("\"proxy-rewrite\" of its own"),
        "{refusal:?}"
    );
}

#[test]
fn a_bad_file_keeps_what_it_said_before() {
    let mut files = PluginFiles::default();
    let web = labels(&[("app", "web")]);
    assert!(files.update([("a.yaml", LIMITS), ("b.yaml", HEADERS)]).is_empty());
    let good = files.select(&web);
    let errors = files.update([("a.yaml", "kind: ["), ("b.yaml", HEADERS)]);
    assert_eq!(errors.len(), 1);
    assert_eq!(files.select(&web), good);
    assert!(files.update([("a.yaml", LIMITS)]).is_empty());
    assert_eq!(files.documents().count(), 1, "a file that is gone takes its documents with it");
    assert!(files.update([("c.yaml", "nonsense")])[0].to_string().starts_with("c.yaml, document 1: "));
    assert_eq!(files.documents().count(), 0);
}

#[test]
fn every_mistake_is_named() {
    for (from, to, says) in [
        ("AmeshPluginConfig", "Other", "Other of apisix.apache.org/v1alpha1 is no AmeshPluginConfig"),
        ("v1alpha1", "v1", "is no AmeshPluginConfig of apisix.apache.org/v1alpha1"),
        ("'{\"count\": 2,", "'{\"count\": ,", "plugin \"limit-count\": its config is no JSON"),
        ("config: '{", "config: '[{", "plugin \"limit-count\": its config is no JSON"),
        ("  - name: limit-count", "  - name: ''", "plugin \"\": it has no name"),
        (
            "  - name: limit-count",
            "  - type: x\n    name: limit-count",
            "its type \"x\" is neither pre-req nor post-req",
        ),
        ("selector", "selectors", "unknown field `selectors`"),
        ("matchLabels: {app: web}", "matchExpressions: [{key: a, operator: Is}]", "\"Is\" is none of In"),
        ("matchLabels: {app: web}", "matchExpressions: [{key: a, operator: In}]", "In of \"a\" needs values"),
        ("plugins:", "plugin:", "unknown field `plugin`"),
    ] {
        assert!(LIMITS.contains(from), "{from}");
        let error = parse("f.yaml", &LIMITS.replace(from, to)).unwrap_err().to_string();
        assert!(error.starts_with("f.yaml, document 1") && error.contains(says), "{to}: {error}");
    }
    let twice = format!("{LIMITS}---\n{}", HEADERS.replace("config: {", "config: [{").replace("}}}", "}}]}"));
    assert!(parse("f.yaml", &twice)
        .unwrap_err()
        .to_string()
        .starts_with("f.yaml, document 2, plugin \"response-rewrite\""));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,60}", at in 0usize..300) {
        let _ = parse("f", &text);
        let broken: String = LIMITS.chars().take(at).chain(text.chars()).chain(LIMITS.chars().skip(at + 3)).collect();
        let _ = parse("f", &broken);
    }
}
