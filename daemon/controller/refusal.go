// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"strings"
)

// Reasons of conditions, which scripts may look at.
const (
	reasonAccepted          = "Accepted"
	reasonKeyInUse          = "KeyInUse"
	reasonWorkloadNotFound  = "WorkloadNotFound"
	reasonContainerNotFound = "ContainerNotFound"
	reasonInvalidPatch      = "InvalidPatch"
	reasonSelected          = "SelectedByOthers"
	reasonServiceNotFound   = "ServiceNotFound"
	reasonPortNotFound      = "PortNotFound"
	reasonRefNotPermitted   = "RefNotPermitted"
	reasonRejected          = "Rejected"
	reasonUnsupported       = "Unsupported"
	reasonTooMany           = "TooMany"
	reasonMemberNotFound    = "SandboxNotFound"
	reasonMemberNotAccepted = "SandboxNotAccepted"

	reasonForksReady    = "ForksReady"
	reasonNoForks       = "NoForks"
	reasonForksRefused  = "ForksRefused"
	reasonStarting      = "Starting"
	reasonImage         = "ImageNotPulled"
	reasonCrashing      = "Crashing"
	reasonConfigMissing = "ConfigMissing"
	reasonUnschedulable = "Unschedulable"
	reasonNotCreated    = "PodsNotCreated"
	reasonNotReady      = "NotReady"
	reasonJobFailed     = "JobFailed"

	reasonProgrammed   = "Programmed"
	reasonWaiting      = "WaitingForNodes"
	reasonNodeUncover  = "NodesNotCovered"
	reasonPodsUncover  = "PodsNotCovered"
	reasonNoNodes      = "NoNodes"
	reasonReady        = "Ready"
	reasonNoEndpoints  = "NoEndpoints"
	reasonNotAccepted  = "NotAccepted"
	reasonNotForked    = "ForksNotReady"
	reasonNotProgramed = "NotProgrammed"
	reasonKeyNames     = "KeyNamesDiffer"
)

// refusal is something in a spec that cannot be honoured: why, for scripts, and
// what to do about it, for people.
type refusal struct{ reason, message string }

func refuse(reason, format string, args ...any) *refusal {
	return &refusal{reason, fmt.Sprintf(format, args...)}
}

// Lists in messages are bounded: they are read by people.
const maxListed = 5

// join writes a bounded list.
func join(items []string, separator string) string {
	if len(items) <= maxListed {
		return strings.Join(items, separator)
	}
	return fmt.Sprintf("%s%sand %d more", strings.Join(items[:maxListed], separator), separator, len(items)-maxListed)
}

// maxMessage is well below what a condition may hold, 32 KiB.
const maxMessage = 1024

// short cuts a message that somebody else has written.
func short(s string, n int) string {
	s = strings.TrimSpace(strings.ToValidUTF8(s, "?"))
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + " …"
}

// tail cuts the beginning: the end of a log says why it ended.
func tail(s string, n int) string {
	s = strings.TrimSpace(strings.ToValidUTF8(s, "?"))
	if len(s) <= n {
		return s
	}
	return "… " + strings.ToValidUTF8(s[len(s)-n:], "")
}
