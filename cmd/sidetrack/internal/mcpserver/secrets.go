// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"strings"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// hidden is what a reply has in place of a routing key.
const hidden = "[routing key]"

// hide has the reply not tell a sandbox's routing key, wherever it comes from: some
// services repeat what they are sent. One that somebody has chosen like the
// sandbox's name is no secret, and without it the handle would be none.
func (c call) hide(sb *v1alpha1.Sandbox) {
	if sb == nil {
		return
	}
	for _, key := range []string{sb.Status.RoutingKey, sb.Spec.RoutingKey} {
		if key != "" && !strings.Contains(handle(sb.Namespace, sb.Name), key) {
			*c.secrets = append(*c.secrets, key)
		}
	}
}

// reveal has the reply tell them: it was asked for that.
func (c call) reveal() { *c.secrets = nil }

// redact takes keys out. What is cut is redacted before: a part of a key is not found.
func (c call) redact(text string) string {
	for _, key := range *c.secrets {
		text = strings.ReplaceAll(text, key, hidden)
	}
	return text
}

// redactCut is redact for a text of which the end is missing: the beginning of a key
// there goes, too.
func (c call) redactCut(text string) string {
	text = c.redact(text)
	for _, key := range *c.secrets {
		for n := min(len(key)-1, len(text)); n > 0; n-- {
			if strings.HasSuffix(text, key[:n]) {
				text = text[:len(text)-n]
				break
			}
		}
	}
	return text
}
