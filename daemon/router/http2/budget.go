// SPDX-License-Identifier: Apache-2.0

package http2

import wire "golang.org/x/net/http2"

// budget bounds how many frames a client may send that cost others more than
// itself: SETTINGS, PING, PRIORITY, WINDOW_UPDATE, empty DATA, and streams that
// are reset as soon as they are opened. It is a bucket of tokens. Time fills it,
// and so does what clients are for: data that they are sent, which they have to
// give back in WINDOW_UPDATEs, and streams that come to their end.
type budget struct {
	tokens int64
	most   int64
	rate   int64 // tokens a second
	filled int64 // when
}

const (
	// resetCost is what a stream costs that one side resets. A server does so when
	// the client makes it, by breaking the protocol on that stream.
	resetCost = 10
	// dataWorth is how many bytes are worth a token: WINDOW_UPDATEs for less are
	// rarely sent.
	dataWorth = 512
	burst     = 2 // seconds
)

func (b *budget) init(rate int, now int64) {
	b.rate, b.most, b.tokens, b.filled = int64(rate), int64(rate)*burst, int64(rate)*burst, now
}

// earn adds tokens.
func (b *budget) earn(n int64) { b.tokens = min(b.tokens+n, b.most) }

// spend takes tokens. A client that has none left is sent away.
func (r *Relay) spend(n int64) {
	if r.tokens -= n; r.tokens >= 0 {
		return
	}
	now := r.env.Now()
	const second = int64(1e9)
	passed := min(now-r.filled, burst*second)
	r.filled = now
	if r.earn(passed * r.rate / second); r.tokens < 0 {
		r.fail(wire.ErrCodeEnhanceYourCalm, TooManyFrames)
	}
}
