// Package policyapi pins network-policy-api: its definition of ClusterNetworkPolicy, and its conformance tests
// (`go test -c sigs.k8s.io/network-policy-api/conformance` in this module builds them).
package policyapi

import _ "sigs.k8s.io/network-policy-api/conformance"
