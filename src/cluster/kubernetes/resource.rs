//! The resources that are followed.

use std::sync::Arc;

use crate::cluster::{ObjectKey, ServiceName, SliceName};

/// A resource of the API server that is followed, in all namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    Services,
    EndpointSlices,
    Nodes,
    ServiceCidrs,
}

impl Resource {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::Services, Self::EndpointSlices, Self::Nodes, Self::ServiceCidrs];

    /// Its name as in API paths.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Nodes => "nodes",
            Self::ServiceCidrs => "servicecidrs",
        }
    }

    /// The path of its collection.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Services => "/api/v1/services",
            Self::EndpointSlices => "/apis/discovery.k8s.io/v1/endpointslices",
            Self::Nodes => "/api/v1/nodes",
            Self::ServiceCidrs => "/apis/networking.k8s.io/v1/servicecidrs",
        }
    }

    /// The label selector, encoded for a query: kube-proxy's, `!service.kubernetes.io/headless,` and
    /// `!service.kubernetes.io/service-proxy-name`. An object that gains one of these labels arrives as deleted.
    pub(super) fn selector(self) -> Option<&'static str> {
        match self {
            Self::Services | Self::EndpointSlices => {
                Some("%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name")
            }
            Self::Nodes | Self::ServiceCidrs => None,
        }
    }

    /// Objects per page of a list: client-go's 500, or less where each is long. A Node lists its images, 10 to 20 KiB of them.
    pub(super) fn page(self) -> u32 {
        match self {
            Self::Services | Self::EndpointSlices | Self::ServiceCidrs => 500,
            Self::Nodes => 100,
        }
    }

    /// Whether a server may lack it: ServiceCIDRs are served as v1 since Kubernetes 1.33.
    pub(super) fn is_optional(self) -> bool {
        self == Self::ServiceCidrs
    }

    /// The key of one of its objects.
    pub(super) fn key(self, namespace: Option<Arc<str>>, name: Arc<str>) -> ObjectKey {
        let in_namespace = || namespace.unwrap_or_else(|| Arc::from("default"));
        match self {
            Self::Services => ObjectKey::Service(ServiceName { namespace: in_namespace(), name }),
            Self::EndpointSlices => ObjectKey::EndpointSlice(SliceName { namespace: in_namespace(), name }),
            Self::Nodes => ObjectKey::Node(name),
            Self::ServiceCidrs => ObjectKey::ServiceCidr(name),
        }
    }
}
