//! A double of the Kubernetes API server: what a node agent says to it and hears from it, over TLS.
