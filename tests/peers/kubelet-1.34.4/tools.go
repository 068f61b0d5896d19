//go:build tools

// Package tools names the programs that tests/peers/build makes of this module.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kubelet"
)
