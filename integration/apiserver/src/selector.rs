//! Which objects a list or watch is about: `labelSelector` and `fieldSelector`.

use crate::status::Status;

/// What an object must be like. All parts must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    namespace: Option<String>,
    name: Option<String>,
    labels: Vec<(String, Requirement)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let among = |values: &[String]| value.is_some_and(|value| values.iter().any(|it| it == value));
        match self {
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::In(values) => among(values),
            Self::NotIn(values) => !among(values),
        }
    }
}

impl Selector {
    /// Reads the parameters of a request; `namespace` is the path's.
    pub fn parse(
        namespace: Option<&str>,
        label_selector: Option<&str>,
        field_selector: Option<&str>,
    ) -> Result<Self, Status> {
        let mut selector = Self { namespace: namespace.map(str::to_owned), ..Self::default() };
        for term in split(label_selector.unwrap_or_default()) {
            selector.labels.push(requirement(term)?);
        }
        for term in field_selector.unwrap_or_default().split(',').filter(|term| !term.is_empty()) {
            let (field, value) = term.split_once('=').unwrap_or((term, ""));
            let value = value.strip_prefix('=').unwrap_or(value).to_owned();
            match field {
                "metadata.name" => selector.name = Some(value),
                "metadata.namespace" if namespace.is_none() => selector.namespace = Some(value),
                "metadata.namespace" => {}
                _ => return Err(Status::bad_request(format!("field label not supported: {field}"))),
            }
        }
        Ok(selector)
    }

    /// Whether it names labels or fields; a namespace alone does not count.
    pub fn is_narrow(&self) -> bool {
        self.name.is_some() || !self.labels.is_empty()
    }

    /// The namespace, where there is one.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Whether an object of that namespace, name and labels is meant.
    pub fn matches(&self, namespace: &str, name: &str, labels: &[(Box<str>, Box<str>)]) -> bool {
        let label = |key: &str| labels.iter().find(|(it, _)| **it == *key).map(|(_, value)| &**value);
        self.namespace.as_deref().is_none_or(|it| it == namespace)
            && self.name.as_deref().is_none_or(|it| it == name)
            && self.labels.iter().all(|(key, requirement)| requirement.holds(label(key)))
    }
}

/// Terms between commas, but for the commas in parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|term| !term.is_empty())
}

fn requirement(term: &str) -> Result<(String, Requirement), Status> {
    let wrong = || {
        Status::bad_request(format!(
            "unable to parse requirement: <nil>: Invalid value: \"{term}\": expected a label selector"
        ))
    };
    let (key, requirement) = if let Some(key) = term.strip_prefix('!') {
        (key, Requirement::Absent)
    } else if let Some((key, value)) = term.split_once("!=") {
        (key, Requirement::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, Requirement::In(vec![value.trim().to_owned()]))
    } else if let Some((head, values)) = term.strip_suffix(')').and_then(|term| term.split_once('(')) {
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        match head.trim().rsplit_once(' ') {
            Some((key, "in")) => (key, Requirement::In(values)),
            Some((key, "notin")) => (key, Requirement::NotIn(values)),
            _ => return Err(wrong()),
        }
    } else {
        (term, Requirement::Exists)
    };
    let key = key.trim();
    if key.is_empty() || key.contains(|c: char| c.is_whitespace() || "()!=".contains(c)) {
        return Err(wrong());
    }
    Ok((key.to_owned(), requirement))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_selectors() {
        let labels = [("app".into(), "web".into()), ("tier".into(), "".into())];
        for (text, expected) in [
            ("", true),
            ("app", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier", true),
            ("app=db", false),
            ("app!=db", true),
            ("app!=web", false),
            ("other!=x", true),
            ("other", false),
            ("!other", true),
            ("!app", false),
            ("app in (db,web)", true),
            ("app in (db, cache),tier", false),
            ("app notin (db,cache),!other", true),
            ("app notin (web)", false),
        ] {
            let selector = Selector::parse(None, Some(text), None).unwrap();
            assert_eq!(selector.matches("a", "b", &labels), expected, "{text}");
        }
    }

    #[test]
    fn broken_selectors_are_refused() {
        for text in ["!", "=a", "a b", "a in b)", "a of (b)"] {
            let status = Selector::parse(None, Some(text), None).unwrap_err();
            assert_eq!(status.code, 400, "{text}");
        }
        assert_eq!(Selector::parse(None, None, Some("spec.nodeName=a")).unwrap_err().code, 400);
    }

    #[test]
    fn fields_and_namespaces() {
        for (namespace, fields, expected) in [
            (None, "metadata.name=b", true),
            (None, "metadata.name==b", true),
            (None, "metadata.name=c", false),
            (Some("a"), "metadata.name=b", true),
            (Some("x"), "metadata.name=b", false),
            (None, "metadata.namespace=a,metadata.name=b", true),
            (None, "metadata.namespace=x", false),
        ] {
            let selector = Selector::parse(namespace, None, Some(fields)).unwrap();
            assert_eq!(selector.matches("a", "b", &[]), expected, "{namespace:?} {fields}");
        }
    }
}
