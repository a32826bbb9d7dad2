// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

const (
	// FieldManager is who the controller is to server-side apply.
	FieldManager = "sidetrack-controller"

	// forkLabel tells a sandbox's forks apart; its value is a short hash.
	forkLabel = v1alpha1.ForkLabel

	managedByLabel = "app.kubernetes.io/managed-by"
	managedBy      = "sidetrack"
	labelPrefix    = v1alpha1.Group + "/"

	// maxName is the longest name that fits into a label and a DNS label.
	maxName = 63
)

// encoding has letters and digits that names may have.
var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// newRoutingKey returns a key of 160 random bits.
func newRoutingKey() string {
	var b [20]byte
	rand.Read(b[:]) // never fails: crypto/rand
	return encoding.EncodeToString(b[:])
}

// shortHash returns 10 letters and digits for words.
func shortHash(words ...string) string {
	h := sha256.New()
	for _, w := range words {
		h.Write([]byte(w))
		h.Write([]byte{0})
	}
	return encoding.EncodeToString(h.Sum(nil))[:10]
}

// forkHash tells a fork from all others of the cluster, ever: the sandbox's UID
// is in it, so that a new sandbox does not meet the objects that an old one of
// the same name leaves to the garbage collector.
func forkHash(sandbox types.UID, w v1alpha1.WorkloadRef) string {
	return shortHash(string(sandbox), workloadKind(w), w.Name)
}

// objectName joins the two for people to read and the hash for being unique.
func objectName(what, sandbox, hash string) string {
	rest := maxName - len(hash) - 2
	// A workload's name may have dots, which a Service's may not.
	what = strings.ReplaceAll(what, ".", "-")
	sandbox = cut(sandbox, max(rest/2, rest-len(what)))
	what = cut(what, rest-len(sandbox))
	return what + "-" + sandbox + "-" + hash
}

func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.TrimRight(s, "-")
}

func workloadKind(w v1alpha1.WorkloadRef) string {
	if w.Kind == "" {
		return "Deployment"
	}
	return w.Kind
}

// workloadName is how messages and status.redirects[].fork name a workload.
func workloadName(w v1alpha1.WorkloadRef) string { return workloadKind(w) + "/" + w.Name }
