// SPDX-License-Identifier: Apache-2.0

// Package browser shows pages to a headless Chromium, for tests.
//
// It owns the browser that it starts, and a folder for that, and takes both away
// with the test. The browser reaches nothing but 127.0.0.1, by its own rules for
// names, and says which addresses a page has asked for. A Page is for one
// goroutine.
package browser

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

// TB is what this package needs of a *testing.T.
type TB interface {
	Helper()
	Cleanup(func())
	TempDir() string
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// patience is how long a page has for what is waited for: as long as a slow and
// busy machine may want.
const patience = 90 * time.Second

// program is Chromium as Debian names it.
const program = "chromium"

// Page is a page in a browser of its own.
type Page struct {
	tb  TB
	ctx context.Context

	mu         sync.Mutex
	asked      []string
	complaints []string
}

// Open starts a browser that lasts as long as the test, with an empty page. Without
// Chromium the test is skipped, but never under CI.
func Open(tb TB) *Page {
	tb.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("CI") != "" {
			tb.Fatalf("the test wants %s: %v", program, err)
		}
		tb.Skipf("the test wants %s: %v", program, err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.UserDataDir(tb.TempDir()),
		chromedp.NoSandbox, // Tests are root's, in CI.
		chromedp.DisableGPU,
		chromedp.WSURLReadTimeout(patience),
		chromedp.WindowSize(1280, 800),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
		chromedp.Flag("hide-scrollbars", false),
	)
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	tb.Cleanup(func() {
		// The browser has to be gone before its folder is removed.
		if err := chromedp.Cancel(ctx); err != nil {
			tb.Logf("the browser did not close well: %v", err)
		}
		cancel()
		stop()
	})
	p := &Page{tb: tb, ctx: ctx}
	if err := chromedp.Listen(ctx, p.hear); err != nil {
		tb.Fatalf("start %s: %v", path, err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		tb.Fatalf("have the browser tell what it asks for: %v", err)
	}
	messages := chromedp.Console(ctx)
	go func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			// An answer of 403 is in the browser's log as well, but it is the page that has to
			// do something about it.
			if m.IsException() || m.Type == "error" && m.Source != "network" {
				p.complain(m.String())
			}
		}
	}()
	return p
}

func (p *Page) complain(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.complaints = append(p.complaints, what)
}

func (p *Page) hear(ev any) {
	if e, ok := ev.(*network.EventRequestWillBeSent); ok {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.asked = append(p.asked, e.Request.URL)
	}
}

// Asked returns the addresses that the page has asked for so far, each once.
func (p *Page) Asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := slices.Clone(p.asked)
	slices.Sort(all)
	return slices.Compact(all)
}

// Complaints returns what went wrong in the page so far: exceptions, and errors in
// the browser's log, such as of a policy that something has violated.
func (p *Page) Complaints() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.complaints)
}

// MustGo goes to an address and waits until the page is loaded.
func (p *Page) MustGo(url string) {
	p.tb.Helper()
	p.do("go to "+url, chromedp.Navigate(url))
}

// MustSize makes the page so large, in pixels.
func (p *Page) MustSize(width, height int64) {
	p.tb.Helper()
	p.do("change the page's size", chromedp.EmulateViewport(width, height))
}

// MustPrefer sets what the user prefers, such as "dark".
func (p *Page) MustPrefer(scheme string) {
	p.tb.Helper()
	_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	if err != nil {
		p.tb.Fatalf("prefer %s: %v", scheme, err)
	}
}

// MustPress presses keys, one after the other.
func (p *Page) MustPress(keys string) {
	p.tb.Helper()
	p.do("press "+keys, chromedp.KeyEvent(keys))
}

// MustClick clicks the element that a CSS selector finds, and waits for it first.
func (p *Page) MustClick(selector string) {
	p.tb.Helper()
	p.MustWait(fmt.Sprintf("!!document.querySelector(%q)", selector))
	p.do("click "+selector, chromedp.Click(selector))
}

// MustTouch makes the page one that is used with fingers.
func (p *Page) MustTouch() {
	p.tb.Helper()
	if _, err := chromedp.Call(p.ctx, emulation.SetTouchEmulationEnabled, emulation.SetTouchEmulationEnabledParams{Enabled: true}); err != nil {
		p.tb.Fatalf("emulate a touch screen: %v", err)
	}
}

// MustTap taps a place of the page with a finger, by its distance in CSS pixels from
// the left and the top.
func (p *Page) MustTap(x, y float64) {
	p.tb.Helper()
	for _, e := range []input.DispatchTouchEventParams{
		{Type: input.DispatchTouchEventTypeTouchStart, TouchPoints: []*input.TouchPoint{{X: x, Y: y}}},
		{Type: input.DispatchTouchEventTypeTouchEnd, TouchPoints: []*input.TouchPoint{}},
	} {
		if _, err := chromedp.Call(p.ctx, input.DispatchTouchEvent, e); err != nil {
			p.tb.Fatalf("tap at %.0f, %.0f: %v", x, y, err)
		}
	}
}

// MustWait waits until an expression is true.
func (p *Page) MustWait(expression string) {
	p.tb.Helper()
	deadline := time.Now().Add(patience)
	for {
		ok, err := p.truth(expression)
		if ok {
			return
		}
		if time.Now().After(deadline) {
			p.tb.Fatalf("it did not come to %s (%v); the page has\n%s\nand complains of %q", expression, err, p.text(), p.Complaints())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// MustBe looks at an expression once.
func (p *Page) MustBe(expression string) {
	p.tb.Helper()
	if ok, err := p.truth(expression); !ok {
		p.tb.Errorf("it is not so that %s (%v); the page has\n%s", expression, err, p.text())
	}
}

// MustGet returns what an expression is.
func MustGet[T any](p *Page, expression string) T {
	p.tb.Helper()
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.tb.Fatalf("%s: %v", expression, err)
	}
	return v
}

func (p *Page) truth(expression string) (bool, error) {
	return chromedp.Run(p.ctx, chromedp.Evaluate[bool]("Boolean("+expression+")"))
}

func (p *Page) text() string {
	text, err := chromedp.Run(p.ctx, chromedp.Evaluate[string]("document.body.innerText"))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(text)
}

// MustText returns what can be read on the page.
func (p *Page) MustText() string {
	p.tb.Helper()
	return MustGet[string](p, "document.body.innerText")
}

// MustShoot writes a picture of the page into a folder, which it makes, once nothing
// on the page moves any more.
func (p *Page) MustShoot(dir, name string) {
	p.tb.Helper()
	p.MustWait("document.getAnimations().length === 0")
	png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
	}
	if err != nil {
		p.tb.Fatalf("take a picture of the page: %v", err)
	}
}

func (p *Page) do(what string, action chromedp.Action[chromedp.Void]) {
	p.tb.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, action); err != nil {
		p.tb.Fatalf("%s: %v", what, err)
	}
}
