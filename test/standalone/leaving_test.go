// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// TestAPodThatIsForgottenGoesOn deletes a pod's object while its namespace lives
// on, with requests under way and new connections all the time: none fails.
func TestAPodThatIsForgottenGoesOn(t *testing.T) {
	s := newShop(t)
	s.serveEcho()
	s.start()
	stop := make(chan struct{})
	var load sync.WaitGroup
	count := 0
	load.Go(func() {
		client := s.client.Client()
		client.Transport.(*http.Transport).DisableKeepAlives = true
		for {
			select {
			case <-stop:
				return
			default:
			}
			if by, err := fetch(client, "http://"+webIP+"/"); err != nil || by != "baseline" {
				t.Errorf("a new connection: %s, %v", by, err)
				return
			}
			count++
		}
	})
	load.Go(func() {
		if by, err := fetch(s.client.Client(), "http://"+webIP+"/?wait=1500ms"); err != nil || by != "baseline" {
			t.Errorf("the request under way: %s, %v", by, err)
		}
	})
	time.Sleep(300 * time.Millisecond)
	if err := os.Remove(filepath.Join(s.dir, "client.yaml")); err != nil {
		t.Error(err)
	}
	time.Sleep(1500 * time.Millisecond)
	close(stop)
	load.Wait()
	if count == 0 {
		t.Error("there was no load")
	}
}

// fetch says which server has answered.
func fetch(c *http.Client, url string) (by string, err error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return "", err
	}
	return resp.Header.Get(lab.ServedBy), nil
}

// TestAFileThatIsEmptiedToBeWrittenAnewKeepsItsObjects rewrites a manifest in
// place, as many editors and shells do.
func TestAFileThatIsEmptiedToBeWrittenAnewKeepsItsObjects(t *testing.T) {
	s := newShop(t)
	s.serveEcho()
	s.start()
	path := filepath.Join(s.dir, "sandbox-a.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	client := s.tester.Client()
	client.Transport.(*http.Transport).DisableKeepAlives = true
	for range 3 {
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); time.Since(began) < 200*time.Millisecond; {
			by, err := fetch(client, "http://"+webIP+"/")
			if time.Since(began) > 250*time.Millisecond {
				break // too slow a machine to say anything
			}
			if err != nil || by != "fork-a" {
				t.Fatalf("while the file is empty: %s, %v", by, err)
			}
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			by, err := fetch(client, "http://"+webIP+"/")
			return errors.Join(err, expect("who answers", by, "fork-a"))
		})
		time.Sleep(200 * time.Millisecond)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for {
		if by, err := fetch(client, "http://"+webIP+"/"); err == nil && by == "baseline" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a file that stays empty still has its objects")
		}
	}
}
