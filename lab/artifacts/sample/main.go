// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

// Sample is a web server that says which pod answered. Told to stop, it reports that it is not ready and goes on answering
// for DRAIN_SECONDS, so that whoever still sends to it loses nothing.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

func seconds(name string, otherwise int) time.Duration {
	text := os.Getenv(name)
	if text == "" {
		return time.Duration(otherwise) * time.Second
	}
	number, err := strconv.Atoi(text)
	if err != nil || number < 0 {
		log.Fatalf("%s=%s: is no number of seconds", name, text)
	}
	return time.Duration(number) * time.Second
}

func main() {
	drain := seconds("DRAIN_SECONDS", 10)
	address := os.Getenv("LISTEN")
	if address == "" {
		address = ":8080"
	}
	pod, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	var stopping atomic.Bool
	handler := http.NewServeMux()
	// /livez is whether the process lives, /healthz whether it wants requests.
	handler.HandleFunc("/livez", func(answer http.ResponseWriter, _ *http.Request) { fmt.Fprintln(answer, "ok") })
	handler.HandleFunc("/healthz", func(answer http.ResponseWriter, _ *http.Request) {
		if stopping.Load() {
			http.Error(answer, "stopping", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(answer, "ok")
	})
	handler.HandleFunc("/", func(answer http.ResponseWriter, request *http.Request) {
		answer.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(answer, "%s %s\n", pod, request.URL.Path)
	})
	server := &http.Server{
		Addr:              address,
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       120 * time.Second,
		MaxHeaderBytes:    64 << 10,
	}
	told, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		log.Fatal(err)
	case <-told.Done():
	}
	stopping.Store(true)
	server.SetKeepAlivesEnabled(false)
	time.Sleep(drain)
	last, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := server.Shutdown(last); err != nil && !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}
