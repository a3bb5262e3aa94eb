//! Kubernetes objects from YAML files and watched folders, for `veni-policy`.
