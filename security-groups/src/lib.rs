//! Security groups for pods: rules and members resolved from the cloud, cached and refreshed.
