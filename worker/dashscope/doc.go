// Package dashscope is a client of Alibaba DashScope's asynchronous image API:
// create, query, cancel, list and upload.
//
// It sends a create at most once and sorts every failure by what the caller
// must do next; see [Error]. The wire structs here are shared with the simulator
// and the gateway.
package dashscope
