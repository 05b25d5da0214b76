// Command workload is what pods of tests run: a server whose moods are set by requests, and a caller.
//
//	workload serve [ADDRESS]           serve HTTP/1 and h2c, at :8080 unless told otherwise
//	workload call URL [EVERY [COUNT]]  GET it steadily, by default every 10ms and for ever
//
// The server answers `/` with its host name and the address that it was called from. `/break` makes it answer 503 to
// all but `/mend`, `/break` and `/healthz`, until `/mend`. `/slow?for=2s` answers after that time. Where the file
// /tmp/broken is, it is broken, too.
//
// The caller prints a line with the counts of its outcomes every second and at its end, such as `200=98 503=1 reset=1`:
// statuses, and how calls without an answer failed. Each call has a second, and all share connections as Go's client
// does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	brokenFile = "/tmp/broken"
	patience   = time.Second
	mostAtOnce = 100
)

func main() {
	stopped, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(stopped, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func run(stopped context.Context, args []string) error {
	word := func(n int, otherwise string) string {
		if n < len(args) {
			return args[n]
		}
		return otherwise
	}
	switch word(0, "") {
	case "serve":
		return serve(stopped, word(1, ":8080"))
	case "call":
		every, err := time.ParseDuration(word(2, "10ms"))
		if err != nil {
			return err
		}
		count, err := strconv.Atoi(word(3, "0"))
		if err != nil {
			return err
		}
		return call(stopped, word(1, ""), every, count)
	}
	return errors.New("write `workload serve [ADDRESS]` or `workload call URL [EVERY [COUNT]]`")
}

func serve(stopped context.Context, address string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	var broken atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/break", func(w http.ResponseWriter, r *http.Request) { broken.Store(true) })
	mux.HandleFunc("/mend", func(w http.ResponseWriter, r *http.Request) { broken.Store(false) })
	answer := func(w http.ResponseWriter, r *http.Request) {
		if _, err := os.Stat(brokenFile); err == nil || broken.Load() {
			http.Error(w, host+" is broken", http.StatusServiceUnavailable)
			return
		}
		caller, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s %s\n", host, caller)
	}
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		delay, err := time.ParseDuration(r.FormValue("for"))
		if err != nil {
			http.Error(w, "write /slow?for=2s", http.StatusBadRequest)
			return
		}
		select {
		case <-time.After(delay):
			answer(w, r)
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/", answer)

	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := http.Server{Addr: address, Handler: mux, Protocols: &protocols}
	go func() {
		<-stopped.Done()
		// Whoever is being served is served to the end; the kubelet's SIGKILL bounds it.
		_ = server.Shutdown(context.Background())
	}()
	fmt.Println("serving on", address)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// counts of outcomes; the few names of outcome bounds it.
type counts struct {
	sync.Mutex
	of map[string]int
}

func (c *counts) add(outcome string) {
	c.Lock()
	defer c.Unlock()
	c.of[outcome]++
}

func (c *counts) String() string {
	c.Lock()
	defer c.Unlock()
	var words []string
	for outcome, n := range c.of {
		words = append(words, fmt.Sprintf("%s=%d", outcome, n))
	}
	sort.Strings(words)
	return strings.Join(words, " ")
}

func call(stopped context.Context, url string, every time.Duration, count int) error {
	client := http.Client{Timeout: patience}
	seen := counts{of: map[string]int{}}
	atOnce := make(chan struct{}, mostAtOnce)
	var pending sync.WaitGroup
	calls, said := time.NewTicker(every), time.NewTicker(time.Second)
	for n := 0; (count == 0 || n < count) && stopped.Err() == nil; {
		select {
		case <-stopped.Done():
		case <-said.C:
			fmt.Println(seen.String())
		case <-calls.C:
			n++
			atOnce <- struct{}{}
			pending.Go(func() {
				seen.add(outcome(client.Get(url)))
				<-atOnce
			})
		}
	}
	pending.Wait()
	fmt.Println(seen.String())
	return nil
}

func outcome(response *http.Response, err error) string {
	if err == nil {
		defer response.Body.Close()
		if _, err = io.Copy(io.Discard, response.Body); err == nil {
			return strconv.Itoa(response.StatusCode)
		}
	}
	var dns *net.DNSError
	switch timeout, ok := err.(interface{ Timeout() bool }); {
	case errors.As(err, &dns):
		return "unresolved"
	case ok && timeout.Timeout():
		return "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "cut"
	}
	return "other"
}
