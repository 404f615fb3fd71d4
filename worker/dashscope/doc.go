// Package dashscope is a client of Alibaba DashScope's asynchronous image API: create,
// query, cancel, list and upload.
//
// It sends a create at most once and classifies every failure by what the caller must
// do next; see [Error]. The simulator and the gateway use its wire structs too.
package dashscope
