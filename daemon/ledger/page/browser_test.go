// SPDX-License-Identifier: Apache-2.0

package page

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/test/browser"
)

// pictures is where screenshots go, for people to look at.
const pictures = "../../../bin/ui"

// look opens the page with something chosen, and when the test is over wants that
// the page has asked nobody but its server and that nothing has gone wrong in it.
func look(t *testing.T, a *apiServer, where string) *browser.Page {
	t.Helper()
	p := browser.Open(t)
	t.Cleanup(func() {
		for _, url := range p.Asked() {
			if !strings.HasPrefix(url, a.URL+"/") && url != "about:blank" {
				t.Errorf("the page has asked for %s", url)
			}
		}
		if c := p.Complaints(); len(c) > 0 {
			t.Errorf("the page complains: %q", c)
		}
	})
	p.MustSize(1280, 860)
	p.MustGo(a.page(where))
	return p
}

// says is an expression: the page has this text.
func says(text string) string { return fmt.Sprintf("document.body.innerText.includes(%q)", text) }

// among is an expression: an element that a selector finds has this text.
func among(selector, text string) string {
	return fmt.Sprintf("[...document.querySelectorAll(%q)].some((e) => e.textContent.includes(%q))", selector, text)
}

func day(n int) *ledger.RecordList {
	list := &ledger.RecordList{}
	for i := range n {
		list.Items = append(list.Items, journey(i+1, time.Duration(n-i)*3*time.Second, i%9 == 4)...)
	}
	refused := hop(2*time.Second, 0, checkout, "stock", ledger.DecisionReject, "", "/stock/9", 503, time.Millisecond)
	refused.Reason, refused.Target, refused.Error = "unavailable", "fork of Deployment/stock", "the fork has no ready endpoint"
	healed := hop(time.Second, n, frontend, "stock", ledger.DecisionFork, "stock-pr-42-klmnopqrst-6c5b4-bbbbb", "/stock/1", 200, 5*time.Millisecond)
	healed.LostKey, healed.Healed, healed.LostBy = true, true, "Deployment/frontend"
	flow := ledger.Record{
		Time: when(3 * time.Second), Node: "node-2", Hook: ledger.HookConnect, Protocol: ledger.ProtocolTCP, Tag: healed.Tag,
		Source: ledger.Source{Namespace: "shop", Workload: "Deployment/route-pr-42-abcdefghij", Pod: "route-pr-42-abcdefghij-7d9f8-x2x4z", Sandbox: "pr-42"}, Service: &ledger.Service{Namespace: "shop", Name: "postgres", Port: 5432},
		Dialled: "10.96.0.9:5432", Decision: ledger.DecisionFork, Reason: "redirected", Answer: &ledger.Answer{Address: "10.0.0.8:5432", Namespace: "shop", Pod: "postgres-pr-42-0"},
	}
	list.Items = append(list.Items, refused, healed, flow)
	since := when(2 * time.Hour)
	list.Nodes = []ledger.NodeAnswer{
		{Node: "node-1", Answered: true, Since: &since}, {Node: "node-2", Answered: true, Since: &since, Dropped: 1200},
		{Node: "node-3", Message: "dial tcp 10.1.0.3:9443: connect: no route to host"},
	}
	return list
}

func TestThePageShowsWhereRequestsWent(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	a.begin = day(12)
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustWait(among(".node", "checkout"))

	// The state of the sandbox, with what is wrong with it in words.
	for _, text := range []string{"node-3 (its agent has been silent for 5 minutes)", "3 connections from before the redirect", "expires in 1 h 1", "Forks 1/2", "Nodes 2/3"} {
		p.MustWait(says(text))
	}
	// What is missing is said.
	for _, text := range []string{"node node-3 does not answer", "no route to host", "node node-2 dropped 1,200 older records"} {
		p.MustBe(among(".gap", text))
	}
	// Who lost the key is in red, and so is the way of its call; nothing else is.
	p.MustBe(among(".node.lost", "checkout"))
	p.MustBe("document.querySelectorAll('.node.lost').length === 1")
	p.MustBe(among(".edge.lost text", "1 key lost"))
	p.MustBe(among(".edge.healed text", "1 healed"))
	p.MustBe("getComputedStyle(document.querySelector('.node.lost rect')).stroke === getComputedStyle(document.querySelector('.problem b, .bad, .tag.lost')).color")
	// Forks have their workload's names, the refused request its own end.
	p.MustBe(among(".node.fork", "route"))
	p.MustBe(among(".node.reject", "unavailable"))
	p.MustShoot(pictures, "light")

	// One request is a tree of its hops.
	p.MustClick("#requests li.lost")
	p.MustWait(among(".hop.lost .verdict", "Deployment/checkout lost the key"))
	p.MustBe("document.querySelectorAll('.tree > li').length === 1 && document.querySelectorAll('.hop').length === 5")
	p.MustBe("document.querySelectorAll('.edge.dim').length > 0")
	p.MustClick(".hop.lost summary")
	p.MustWait(among(".hop dd", "stock-6f8b9c7d5-wxzbc in shop"))
	p.MustShoot(pictures, "lost-key")
	p.MustPrefer("dark")
	p.MustShoot(pictures, "dark")

	p.MustClick("#tab-forks")
	p.MustWait(says("CrashLoopBackOff: exit status 1"))
	p.MustBe(among("tr.bad td", "stock-pr-42-klmnopqrst-6c5b4-bbbbb"))
	p.MustBe(says("it has no ready endpoint"))
	p.MustShoot(pictures, "forks")
	p.MustPrefer("light")
	p.MustClick("#tab-nodes")
	p.MustWait(among("td .chip.bad", "5 min"))
	p.MustBe(says("dial tcp 10.1.0.3:9443"))
	p.MustShoot(pictures, "nodes")
}

func TestNewRequestsAppearAndNothingJumps(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	a.begin = day(5)
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustWait(among("#link", "live"))
	p.MustWait(among("#count", "7 requests"))
	const places = `JSON.stringify([...document.querySelectorAll('.stage, .bar, .halves, .tabs, .node')].map((e) => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height].map(Math.round); }))`
	p.MustWait("document.getAnimations().length === 0")
	before := browser.MustGet[string](p, places)
	// The same ways again: they count more, and that is all.
	a.say(&ledger.RecordList{Items: journey(900, 0, true)})
	p.MustWait(among("#count", "8 requests"))
	p.MustWait(among(".edge.lost text", "2 key lost"))
	p.MustWait("document.getAnimations().length === 0")
	if after := browser.MustGet[string](p, places); after != before {
		t.Errorf("things have moved from\n%s to\n%s", before, after)
	}
	// Standing still, it counts what it does not show.
	p.MustClick("#pause")
	a.say(&ledger.RecordList{Items: journey(901, 0, false)})
	p.MustWait(among("#pause", "(4 new)"))
	p.MustBe(among("#count", "8 requests"))
	p.MustClick("#pause")
	p.MustWait(among("#count", "9 requests"))
}

func TestAStreamThatEndsIsFollowedAgain(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	a.begin = day(2)
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustWait(among("#count", "4 requests"))
	a.change(func() { a.begin = day(6) })
	a.say(nil)
	p.MustWait(among("#count", "8 requests"))
	p.MustWait(among("#link", "live"))
}

func TestAStreamThatTheCollectorEndsSaysWhy(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	a.begin = day(2)
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustWait(among("#count", "4 requests"))
	a.change(func() { a.begin = day(6) })
	a.say(&ledger.RecordList{Ended: &metav1.Status{Code: http.StatusTooManyRequests, Message: "others want to read", Details: &metav1.StatusDetails{RetryAfterSeconds: 5}}})
	p.MustWait(says("others want to read"))
	p.MustWait(among("#count", "8 requests"))
	p.MustWait(among("#link", "live"))
}

func TestACollectorThatIsFullIsAskedAgainWhenItSays(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	a.begin = day(2)
	a.busy = true
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustWait(says("as many streams are open as there may be"))
	refused := 0
	for deadline := time.Now().Add(2 * time.Minute); refused < 2; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not ask again")
		}
		a.change(func() { refused = len(a.full) })
	}
	a.change(func() {
		a.busy = false
		if wait := a.full[1].Sub(a.full[0]); wait < 3*time.Second {
			t.Errorf("it asks again after %s, and was told to wait for 4 s", wait)
		}
	})
	p.MustWait(among("#link", "live"))
}

func TestAThousandRecordsAreNoBurden(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	list := day(230) // four or five records each
	if len(list.Items) < 940 {
		t.Fatalf("only %d records", len(list.Items))
	}
	list.Items = list.Items[len(list.Items)-943:]
	for i := range 60 {
		service := fmt.Sprintf("service-%d", i)
		list.Items = append(list.Items, hop(0, 0, fmt.Sprintf("Deployment/client-%d client-%d-7c9d8f6b5-hjklm", i%12, i%12), service, ledger.DecisionBaseline, service+"-7c9d8f6b5-hjklm", "/", 200, time.Millisecond))
	}
	a.begin = list
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustWait("document.querySelectorAll('.node').length > 100")
	p.MustWait("document.querySelectorAll('#requests li').length === 200")
	p.MustShoot(pictures, "thousand")
	p.MustClick(".scroll > .empty button")
	p.MustWait("document.querySelectorAll('#requests li').length > 250")
	p.MustClick("#problems")
	p.MustWait(says(" of "))
	p.MustBe("[...document.querySelectorAll('#requests li')].every((e) => e.querySelector('.tag.lost, .tag.healed, .outcome.bad'))")
}

func TestThePageIsUsedByKeyboard(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	a.begin = day(5)
	p := look(t, a, "shop/sandboxes/pr-57")
	p.MustWait(says("sandbox in shop"))
	p.MustGo(a.page("shop/sandboxes/pr-42"))
	p.MustWait(among("#count", "7 requests"))
	p.MustPress("/")
	p.MustWait("document.activeElement.id === 'search'")
	p.MustPress("tiles")
	p.MustWait(among("#count", "5 of 7"))
	browser.MustGet[bool](p, "document.getElementById('requests').focus() || true")
	p.MustPress("j")
	p.MustPress("j")
	p.MustWait("document.querySelectorAll('#requests li')[1].getAttribute('aria-selected') === 'true'")
	p.MustBe("document.getElementById('requests').getAttribute('aria-activedescendant') === document.querySelectorAll('#requests li')[1].id")
	browser.MustGet[bool](p, "document.querySelector('.node.service').focus() || true")
	p.MustPress("\r")
	p.MustWait("document.querySelector('.node.service').getAttribute('aria-pressed') === 'true'")
	p.MustPress("\x1b")
	p.MustWait("document.querySelectorAll('[aria-pressed=true], [aria-selected=true]:not([role=tab])').length === 0")
}

// TestEveryPartOfThePictureIsReachedByKeyboard goes through the picture as somebody
// does who has no mouse, and knows it by what a screen reader says.
func TestEveryPartOfThePictureIsReachedByKeyboard(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	a.begin = day(5)
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustWait(among("#count", "7 requests"))
	p.MustWait("document.querySelectorAll('.edge').length > 5")
	parts := browser.MustGet[[]string](p, "[...document.querySelectorAll('.picture .node, .picture .edge')].map((e) => e.dataset.part)")
	const here = "document.activeElement?.closest('.picture [role=button]')"
	type stop struct{ Part, Name, Class string }
	at := func() stop {
		return browser.MustGet[stop](p, here+` ? {Part: document.activeElement.dataset.part, Name: document.activeElement.getAttribute('aria-label') ?? '', Class: document.activeElement.getAttribute('class')} : {}`)
	}
	browser.MustGet[bool](p, "document.getElementById('tab-traffic').focus() || true")
	seen := map[string]string{}
	for range len(parts) + 3 {
		p.MustPress("\t")
		if s := at(); s.Part != "" {
			if s.Name == "" {
				t.Errorf("%s has no name", s.Part)
			}
			seen[s.Part] = s.Name
		}
	}
	for _, part := range parts {
		if seen[part] == "" {
			t.Errorf("Tab does not lead to %q", part)
		}
	}
	var names []string
	for _, name := range seen {
		names = append(names, name)
	}
	for _, want := range []string{"from checkout (Deployment) to stock (Service), 1 × 200, 1 × 503, without the key 1 times", "checkout, Deployment, "} {
		if !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, want) }) {
			t.Errorf("nothing is called %q: %q", want, names)
		}
	}

	// What is pressed shows the requests that went there only, and stays in focus while
	// the picture is drawn anew.
	browser.MustGet[bool](p, "document.querySelector('.edge.lost').focus() || true")
	p.MustBe("getComputedStyle(document.querySelector('.edge.lost .line')).stroke === getComputedStyle(document.querySelector('.edge.lost text')).fill")
	for _, key := range []string{"\r", " "} {
		p.MustPress(key)
		p.MustWait("document.activeElement.getAttribute('aria-pressed') === 'true'")
		p.MustWait(says("only one arrow"))
		p.MustWait(among("#count", " of 7"))
		p.MustPress("\x1b")
		p.MustWait("document.activeElement.getAttribute('aria-pressed') === 'false'")
	}
	a.say(&ledger.RecordList{Items: journey(77, 0, true)})
	p.MustWait(among("#count", "8 requests"))
	p.MustBe("document.activeElement.classList.contains('lost')")

	// Arrow keys go along the arrows, and up and down between those of a kind.
	browser.MustGet[bool](p, "[...document.querySelectorAll('.node')].find((e) => e.getAttribute('aria-label').startsWith('tests, ')).focus() || true")
	for _, want := range []string{"from tests (Job of the sandbox) to frontend (Service)", "frontend, Service", "from frontend (Service) to frontend (Deployment)", "frontend, Deployment", "from frontend (Deployment) to "} {
		p.MustPress(kb.ArrowRight)
		if s := at(); !strings.HasPrefix(s.Name, want) {
			t.Errorf("ArrowRight leads to %+v, want %q", s, want)
		}
	}
	p.MustPress(kb.ArrowLeft)
	if s := at(); !strings.HasPrefix(s.Name, "frontend, Deployment") {
		t.Errorf("ArrowLeft leads to %+v", s)
	}
	browser.MustGet[bool](p, "document.querySelector('.node.lost').focus() || true")
	start := at()
	p.MustPress(kb.ArrowRight)
	first := at()
	p.MustPress(kb.ArrowDown)
	down := at()
	p.MustPress(kb.ArrowUp)
	if !strings.Contains(down.Class, "edge") && !strings.Contains(at().Class, "edge") {
		t.Errorf("from %+v by %+v the arrows lead to %+v and back to %+v, not to other arrows", start, first, down, at())
	}
	p.MustShoot(pictures, "keyboard")
}

func TestThePictureIsUsedByFinger(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	a.begin = day(5)
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustTouch()
	p.MustWait(among("#count", "7 requests"))
	p.MustWait("document.getAnimations().length === 0")
	middle := func(selector string) (x, y float64) {
		at := browser.MustGet[[]float64](p, fmt.Sprintf(`(() => {
			const el = document.querySelector(%q);
			const line = el.querySelector('.line');
			if (!line) { const r = el.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }
			const q = line.getPointAtLength(line.getTotalLength() * 0.9).matrixTransform(line.getScreenCTM());
			return [q.x, q.y];
		})()`, selector))
		return at[0], at[1]
	}
	for _, selector := range []string{".node.service", ".edge.lost"} {
		p.MustTap(middle(selector))
		p.MustWait(fmt.Sprintf("document.querySelector(%q).getAttribute('aria-pressed') === 'true'", selector))
		p.MustTap(middle(selector))
		p.MustWait(fmt.Sprintf("document.querySelector(%q).getAttribute('aria-pressed') === 'false'", selector))
	}
}

// TestAnUpgradeIsSeenAtOnce has another version of the page come under the same
// address, as when the collector's binary is replaced.
func TestAnUpgradeIsSeenAtOnce(t *testing.T) {
	old, next := files(), files()
	marked := func(all map[string]file, version string) {
		f := all["state.js"] // deep among the modules
		f.text = append(slices.Clone(f.text), fmt.Sprintf("\ndocument.documentElement.dataset.version = %q;\n", version)...)
		f.etag = tag(f.text)
		all["state.js"] = f
	}
	marked(old, "old")
	marked(next, "new")
	var now atomic.Pointer[handler]
	var same, sent atomic.Int64
	serve := func(all map[string]file) {
		h := handler(all)
		now.Store(&h)
	}
	serve(old)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, root) {
			http.NotFound(w, r)
			return
		}
		rec := httptest.NewRecorder()
		now.Load().ServeHTTP(rec, r)
		if rec.Code == http.StatusNotModified {
			same.Add(1)
		} else {
			sent.Add(1)
		}
		maps.Copy(w.Header(), rec.Header())
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	}))
	defer s.Close()
	p := browser.Open(t)
	version := func(want string) {
		t.Helper()
		p.MustGo("about:blank")
		p.MustGo(s.URL + root + Index)
		p.MustWait(fmt.Sprintf("document.documentElement.dataset.version === %q", want))
	}
	version("old")
	before := sent.Load()
	version("old")
	if n := sent.Load() - before; n != 0 || same.Load() == 0 {
		t.Errorf("%d files were sent again that had not changed, %d were not", n, same.Load())
	}
	serve(next)
	version("new")
	if n := sent.Load() - before; n != 1 {
		t.Errorf("%d files were sent of which one had changed", n)
	}
}

func TestTextsOfAttackersStayTexts(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	const evil = `/<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`
	r := hop(0, 7, frontend, "route", ledger.DecisionFork, "<b>pod</b>", evil+"\u202egnp", 200, time.Millisecond)
	r.Request.Method, r.Request.Authority, r.Error, r.LostKey, r.LostBy = "<i>GET</i>", evil, evil, true, evil
	r.Source.Workload = "Deployment/__proto__"
	a.begin = &ledger.RecordList{Items: []ledger.Record{r}, Nodes: []ledger.NodeAnswer{{Node: evil, Message: evil}}}
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustClick("#requests li")
	p.MustWait(among(".hop dd", "onerror="))
	p.MustWait(says(`\u202egnp`))
	p.MustBe("document.title === 'pr-42 · Sidetrack'")
	p.MustBe("document.querySelectorAll('img').length === 1 && document.querySelectorAll('script').length === 1 && !document.querySelector('#app b i, #app svg b')")
	p.MustBe(among(".node", "__proto__"))
	// And if they did not, the policy would stop them.
	p.MustBe("window.trustedTypes && trustedTypes.emptyHTML !== undefined")
}

func TestARoutingKeyIsShownOnlyWhenAskedFor(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustWait(says("Show key"))
	if html := browser.MustGet[string](p, "document.documentElement.outerHTML"); strings.Contains(html, secret) {
		t.Error("the key is in the page")
	}
	p.MustClick(".key button")
	p.MustWait(says("baggage: sidetrack=" + secret))
	p.MustClick(".key button")
	p.MustWait("!" + says(secret))
	// It has the name that the nodes say, where they do.
	name := func(names v1alpha1.CommonKeyNames) {
		a.change(func() { a.sandboxes[0].Status.KeyNames = &names })
		p.MustClick(".key button")
	}
	name(v1alpha1.CommonKeyNames{Members: []string{"acme", "sidetrack"}, Header: "x-acme"})
	p.MustWait(says("baggage: acme=" + secret))
	p.MustClick(".key button")
	p.MustWait("!" + says(secret))
	name(v1alpha1.CommonKeyNames{Split: true, Message: "--baggage-member differs on nodes a and b"})
	p.MustWait(says("no name tags a request for all nodes: --baggage-member differs on nodes a and b"))
	p.MustBe("!" + says(secret))
}

func TestWhoMayNotReadIsToldSo(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	a.begin = day(2)
	const sentence = `sandboxes.sidetrack.dev is forbidden: User "eve" cannot list resource "sandboxes" in API group "sidetrack.dev" in the namespace "shop"`
	a.change(func() { a.forbidden["sandboxes"] = sentence })
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustWait(says(sentence))
	p.MustBe(among(".problem b", "Forbidden"))
	p.MustBe("!document.querySelector('.node, #requests li')")
	p.MustShoot(pictures, "forbidden")

	// Who may read sandboxes, but neither nodes nor pods nor the ledger, sees what he may.
	a.change(func() {
		delete(a.forbidden, "sandboxes")
		a.forbidden["nodestates"] = "nodestates is forbidden"
		a.forbidden["/pods"] = "pods is forbidden"
		a.forbidden["/records"] = "records is forbidden"
	})
	p.MustWait(says("records is forbidden"))
	p.MustWait(says("expires in"))
	p.MustClick("#tab-forks")
	p.MustWait(says("Its pods cannot be shown: pods is forbidden"))
	p.MustClick("#tab-nodes")
	p.MustWait(says("The nodes' own states cannot be shown: nodestates is forbidden"))
	p.MustBe(says("2 of 3"))
}

func TestNamespacesAndGroups(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	p := look(t, a, "")
	p.MustWait("document.querySelectorAll('nav li').length === 4")
	p.MustBe(among("nav li", "pay/pr-9"))
	p.MustClick("nav li:nth-child(2) button")
	p.MustWait(says("route group in shop") + " || " + says("sandbox in shop"))
	browser.MustGet[bool](p, `(() => { const i = document.getElementById('namespace'); i.value = 'pay'; i.dispatchEvent(new Event('change', {bubbles: true})); return true; })()`)
	p.MustWait("document.querySelectorAll('nav li').length === 1")
	p.MustBe("location.hash === '#/pay'")
	p.MustGo(a.page("shop/routegroups/all"))
	p.MustWait(says("route group in shop"))
	p.MustClick("#tab-forks")
	p.MustWait(among("td", "pr-57"))
}

func TestAnAPIServerThatIsGoneIsNoSilence(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	a.begin = day(2)
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustWait(among("#count", "4 requests"))
	a.CloseClientConnections()
	if err := a.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	p.MustWait(says("out of date: the API server does not answer"))
	p.MustWait(among("#link", "ledger not read"))
	p.MustBe(among("#count", "4 requests"))
}

// TestThePageAsksOnlyForWhatSidetrackUILetsThrough keeps the list that the user's
// program has of paths.
func TestThePageAsksOnlyForWhatSidetrackUILetsThrough(t *testing.T) {
	a := newAPIServer(t)
	a.shop()
	p := look(t, a, "shop/sandboxes/pr-42")
	p.MustWait(among("#link", "live"))
	var data []string
	for _, url := range p.Asked() {
		if path := strings.TrimPrefix(url, a.URL); !strings.HasPrefix(path, root) {
			data = append(data, path)
		}
	}
	want := []string{
		"/api/v1/namespaces/shop/pods?labelSelector=sidetrack.dev%2Fsandbox%3Dpr-42",
		"/apis/ledger.sidetrack.dev/v1alpha1/watch/namespaces/shop/sandboxes/pr-42/records?follow=true&limit=1000",
		"/apis/sidetrack.dev/v1alpha1/namespaces/shop/routegroups",
		"/apis/sidetrack.dev/v1alpha1/namespaces/shop/sandboxes",
		"/apis/sidetrack.dev/v1alpha1/nodestates",
	}
	if !slices.Equal(data, want) {
		t.Errorf("the page has asked for\n%s\nwant\n%s", strings.Join(data, "\n"), strings.Join(want, "\n"))
	}
	if answer, err := http.Get(a.URL + root + Index); err != nil || answer.Header.Get("Content-Security-Policy") != Policy {
		t.Errorf("the index comes with the policy %q: %v", answer.Header.Get("Content-Security-Policy"), err)
	}
}
