use serde_json::json;

use super::*;

fn service(name: &str, port: u16) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"ports": [{"port": port}]}})
}

fn names(page: &Page) -> Vec<&str> {
    page.objects.iter().map(|object| object.key()).collect()
}

fn all(store: &Store, revision: u64) -> Result<Vec<String>, Expired> {
    let page = store.page(Resource::Services, revision, None, &Selector::default(), usize::MAX)?;
    Ok(page.objects.iter().map(|object| object.item().to_owned()).collect())
}

#[test]
fn an_earlier_revision_is_what_there_was() {
    let mut store = Store::new(100);
    let mut seen = vec![(store.revision(), all(&store, store.revision()).unwrap())];
    for step in 0..40 {
        let name = format!("s{}", step % 7);
        if step % 5 == 3 {
            store.delete(Resource::Services, &format!("shop/{name}"));
        } else {
            store.apply(Resource::Services, service(&name, step)).unwrap();
        }
        seen.push((store.revision(), all(&store, store.revision()).unwrap()));
    }
    for (revision, expected) in seen {
        assert_eq!(all(&store, revision).unwrap(), expected, "at revision {revision}");
    }
}

#[test]
fn pages_go_on_after_the_last() {
    let mut store = Store::new(100);
    for name in ["a", "b", "c", "d", "e"] {
        store.apply(Resource::Services, service(name, 80)).unwrap();
    }
    let then = store.revision();
    store.delete(Resource::Services, "shop/d");
    store.apply(Resource::Services, service("c2", 80)).unwrap();
    for (revision, expected) in
        [(then, vec!["shop/d", "shop/e"]), (store.revision(), vec!["shop/c2", "shop/e"])]
    {
        let page = store.page(Resource::Services, revision, None, &Selector::default(), 3).unwrap();
        assert_eq!((names(&page), page.remaining), (vec!["shop/a", "shop/b", "shop/c"], 2));
        let page = store.page(Resource::Services, revision, Some("shop/c"), &Selector::default(), 3).unwrap();
        assert_eq!((names(&page), page.remaining), (expected, 0));
    }
}

#[test]
fn history_is_bounded_and_can_be_cut() {
    let mut store = Store::new(3);
    for port in 1..=5 {
        store.apply(Resource::Services, service("a", port)).unwrap();
    }
    let now = store.revision();
    assert_eq!(all(&store, now - 4), Err(Expired(now - 3)));
    assert_eq!(all(&store, now - 3).map(|list| list.len()), Ok(1));
    assert_eq!(store.changes_after(Resource::Services, now - 3, 10).unwrap().len(), 3);
    assert_eq!(store.changes_after(Resource::Services, now - 3, 2).unwrap().len(), 2);
    assert_eq!(store.changes_after(Resource::Services, now - 4, 10).unwrap_err(), Expired(now - 3));
    store.compact();
    assert_eq!(all(&store, now - 1), Err(Expired(now)));
    assert_eq!(store.horizon(Resource::Nodes), now);
    assert!(store.changes_after(Resource::Services, now - 1, 10).is_ok(), "open watches read on");
}

#[test]
fn what_changes_nothing_makes_no_revision() {
    let mut store = Store::new(10);
    let first = store.apply(Resource::Services, service("a", 80)).unwrap();
    let revision = store.revision();
    let again = store.apply(Resource::Services, service("a", 80)).unwrap();
    assert_eq!((store.revision(), again.item()), (revision, first.item()));
    let changed = store.apply(Resource::Services, service("a", 81)).unwrap();
    assert_eq!(store.revision(), revision + 1);
    let (old, new) = (first.value(Resource::Services), changed.value(Resource::Services));
    assert_eq!(old["metadata"]["uid"], new["metadata"]["uid"]);
    assert_eq!(new["metadata"]["resourceVersion"], store.revision().to_string());
    assert_eq!((&new["kind"], &new["apiVersion"]), (&json!("Service"), &json!("v1")));
}

#[test]
fn an_object_that_is_gone_is_told_with_the_revision_of_its_end() {
    let mut store = Store::new(10);
    let object = store.apply(Resource::Nodes, json!({"metadata": {"name": "n"}})).unwrap();
    let gone: Value = serde_json::from_str(&object.json_at(Resource::Nodes, 77)).unwrap();
    assert_eq!(gone["metadata"]["resourceVersion"], "77");
    assert_eq!(gone["kind"], "Node");
}
