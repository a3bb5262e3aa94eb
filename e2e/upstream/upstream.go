// Package upstream pins Kubernetes' own end-to-end tests: `go test -c k8s.io/kubernetes/test/e2e` in this module builds
// them with what go.mod and go.sum say.
package upstream

import _ "k8s.io/kubernetes/test/e2e"
