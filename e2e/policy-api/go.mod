module veni.test/e2e/policy-api

go 1.26

require sigs.k8s.io/network-policy-api v0.2.0
