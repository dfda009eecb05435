//! The resources that are served, and where in paths they are.

/// A resource of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// `v1` Services.
    Services,
    /// `discovery.k8s.io/v1` EndpointSlices.
    EndpointSlices,
    /// `v1` Nodes.
    Nodes,
    /// `networking.k8s.io/v1` ServiceCIDRs.
    ServiceCidrs,
    /// `v1` Secrets.
    Secrets,
    /// `v1` Events.
    CoreEvents,
    /// `events.k8s.io/v1` Events.
    Events,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Services,
        Self::EndpointSlices,
        Self::Nodes,
        Self::ServiceCidrs,
        Self::Secrets,
        Self::CoreEvents,
        Self::Events,
    ];

    /// The API group; empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::EndpointSlices => "discovery.k8s.io",
            Self::ServiceCidrs => "networking.k8s.io",
            Self::Events => "events.k8s.io",
            Self::Services | Self::Nodes | Self::Secrets | Self::CoreEvents => "",
        }
    }

    /// `apiVersion` of its objects.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::EndpointSlices => "discovery.k8s.io/v1",
            Self::ServiceCidrs => "networking.k8s.io/v1",
            Self::Events => "events.k8s.io/v1",
            Self::Services | Self::Nodes | Self::Secrets | Self::CoreEvents => "v1",
        }
    }

    /// Its name in paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Nodes => "nodes",
            Self::ServiceCidrs => "servicecidrs",
            Self::Secrets => "secrets",
            Self::CoreEvents | Self::Events => "events",
        }
    }

    /// `kind` of its objects.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Nodes => "Node",
            Self::ServiceCidrs => "ServiceCIDR",
            Self::Secrets => "Secret",
            Self::CoreEvents | Self::Events => "Event",
        }
    }

    /// Whether its objects are in namespaces.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Nodes | Self::ServiceCidrs)
    }

    /// The resource of an object, by its `apiVersion` and `kind`.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.api_version() == api_version && it.kind() == kind)
    }

    /// What follows `metadata` in an object of this kind in which nothing is set: bookmarks carry it.
    pub(crate) fn zero_fields(self) -> &'static str {
        match self {
            Self::Services => r#","spec":{},"status":{"loadBalancer":{}}"#,
            Self::EndpointSlices => r#","addressType":"","endpoints":null,"ports":null"#,
            Self::Nodes => concat!(
                r#","spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{"#,
                r#""machineID":"","systemUUID":"","bootID":"","kernelVersion":"","osImage":"","#,
                r#""containerRuntimeVersion":"","kubeletVersion":"","kubeProxyVersion":"","#,
                r#""operatingSystem":"","architecture":""}}"#
            ),
            Self::ServiceCidrs => r#","spec":{},"status":{}"#,
            Self::Secrets => "",
            Self::CoreEvents => {
                r#","involvedObject":{},"source":{},"firstTimestamp":null,"lastTimestamp":null"#
            }
            Self::Events => r#","eventTime":null,"regarding":{}"#,
        }
    }
}

/// What a path of the API names; whether it is served is another question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// API group, empty for the core group.
    pub group: String,
    /// Version within the group.
    pub version: String,
    /// Name of the resource.
    pub resource: String,
    /// The namespace, where one is named.
    pub namespace: Option<String>,
    /// The object, where one is named.
    pub name: Option<String>,
    /// A subresource such as `status`.
    pub subresource: Option<String>,
}

impl Target {
    /// Reads `/api/v1/...` and `/apis/GROUP/VERSION/...`.
    pub fn parse(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/').map(str::to_owned);
        let group = match parts.next()?.as_str() {
            "api" => String::new(),
            "apis" => parts.next()?,
            _ => return None,
        };
        let version = parts.next()?;
        let rest: Vec<String> = parts.collect();
        let (namespace, rest) = match rest.as_slice() {
            [namespaces, namespace, rest @ ..] if namespaces == "namespaces" && !rest.is_empty() => {
                (Some(namespace.clone()), rest)
            }
            rest => (None, rest),
        };
        let [resource, rest @ ..] = rest else { return None };
        Some(Self {
            group,
            version,
            resource: resource.clone(),
            namespace,
            name: rest.first().cloned(),
            subresource: rest.get(1).cloned(),
        })
    }

    /// The resource, if it is one that can be served.
    pub fn resource(&self) -> Option<Resource> {
        let known =
            |it: &Resource| it.group() == self.group && it.plural() == self.resource && self.version == "v1";
        Resource::ALL.into_iter().find(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/api/v1/services", Some(("", "services", None, None))),
            ("/api/v1/namespaces/shop/services/web", Some(("", "services", Some("shop"), Some("web")))),
            ("/api/v1/nodes/a/status", Some(("", "nodes", None, Some("a")))),
            ("/api/v1/namespaces/shop", Some(("", "namespaces", None, Some("shop")))),
            (
                "/apis/events.k8s.io/v1/namespaces/default/events",
                Some(("events.k8s.io", "events", Some("default"), None)),
            ),
            ("/version", None),
            ("/api", None),
            ("/apis/discovery.k8s.io/v1", None),
        ] {
            let target = Target::parse(path);
            let seen = target.as_ref().map(|target| {
                (&*target.group, &*target.resource, target.namespace.as_deref(), target.name.as_deref())
            });
            assert_eq!(seen, expected, "{path}");
        }
    }

    #[test]
    fn only_served_versions_are_resources() {
        let resource = |path| Target::parse(path).and_then(|target| target.resource());
        assert_eq!(resource("/apis/discovery.k8s.io/v1/endpointslices"), Some(Resource::EndpointSlices));
        assert_eq!(resource("/apis/discovery.k8s.io/v1beta1/endpointslices"), None);
        assert_eq!(resource("/api/v1/events"), Some(Resource::CoreEvents));
        assert_eq!(resource("/api/v1/pods"), None);
    }
}
