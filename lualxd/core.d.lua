---@meta lualxd.core
-- The C module, as the Lua above it sees it. Private to lualxd: scripts use `require "lualxd"`.
-- No function here yields, none calls Lua; what the world can refuse comes back as values,
-- only a wrong argument (a mistake in lualxd itself) and a lack of memory raise.

---@class lualxd.core
local core = {}

---Seconds of a clock that never goes back (CLOCK_MONOTONIC); its zero means nothing.
---@return number
function core.now() end

---The process id, as a fork changes it.
---@return integer
function core.pid() end

---The SHA-256 of some bytes.
---@param bytes string
---@return string hex 64 lowercase digits
function core.sha256(bytes) end

---Bytes from the system's random source, in hexadecimal.
---@param bytes integer how many
---@return string hex twice as many digits
function core.random(bytes) end

---Whether there is a unix socket at this path that this process may connect to, as access(2) and
---stat(2) see it, without connecting.
---@param path string
---@return boolean
function core.is_socket(path) end

---Puts right, in place, what lua-cjson lost when it decoded a text. Arrays that are empty in the text get `array` as
---metatable, integers of more than 15 digits become integers again (where Lua has no 64-bit integer they stay floats),
---`null` goes (in arrays the rest moves up), floats of integral value up to 2^53 become integers where Lua has them. The
---tree is as deep as lua-cjson let it be (1,000).
---@param tree any what `decode` made of the text
---@param text string
---@param array table the metatable of arrays
---@param null any what the decoder gives for null
---@param decode fun(text: string): any the decoder
---@return any tree the same table, or the value that stands for it
function core.restore_json(tree, text, array, null, decode) end

---@class lualxd.core.poller one descriptor for every socket and timer of a Lua state
local poller = {}

---Opens an epoll instance and a timerfd. After a fork the child's first use of an inherited poller replaces
---both, without touching what the parent watches.
---@return lualxd.core.poller? poller nil where the process has no descriptor left
---@return string? message
function core.poller() end

---The descriptor that is readable when `step` has something to do. It changes after a fork.
---@return integer
function poller:pollfd() end

---Advances everything that can be advanced, in bounded time (a peer that always has more to say
---doesn't keep it here for ever).
---@param news table filled from 1 with the ids of requests that have news since the last step:
---ended, bytes to read, room to write; each id once
---@param timeout number? seconds to wait at most until there is something to advance; nil: don't
---wait. Rounded up to milliseconds; a signal ends it early.
---@return integer n how many
function poller:step(news, timeout) end

---Blocks until the descriptor is readable, a time has passed or a signal came.
---@param timeout? number seconds; nil: no limit
---@return boolean readable
function poller:wait(timeout) end

---The descriptor is readable from this time on, too (what is to be done then is the caller's), until the
---next `alarm`.
---@param at? number of core.now()'s clock; nil: never
function poller:alarm(at) end

---Closes the descriptors; engines on it end their requests as cancelled. Idempotent, also __gc.
function poller:close() end

---@class lualxd.core.waker a descriptor that one waiter has for itself
local waker = {}

---@return lualxd.core.waker? waker nil where the process has no descriptor left
---@return string? message
function core.waker() end

---The descriptor: readable when `set`'s time has come or the watched one is readable. It changes by the first
---`watch` and by a fork.
---@return integer
function waker:fd() end

---@param seconds? number from now; 0: at once; nil: never
function waker:set(seconds) end

---Has another descriptor watched beside; raises where it can't be.
---@param fd? integer nil: none any more
function waker:watch(fd) end

---Idempotent, also __gc.
function waker:close() end

---@class lualxd.core.waiter a thread that waits for descriptors and says so on unix sockets, for nginx
local waiter = {}

---@return lualxd.core.waiter? waiter
---@return string? message
function core.waiter() end

---Where to connect a unix socket to, which this process alone can: write the number of a descriptor and a line feed;
---one byte comes once it is readable; as often as wanted.
---@return string
function waiter:path() end

---Ends the thread. Idempotent, also __gc.
function waiter:close() end

---@class lualxd.core.engine one libcurl multi handle: the connections of one client
local engine = {}

---@class lualxd.core.engine_options
---@field unix string? path of the unix socket that every request of this engine goes to
---@field connections integer requests under way at once; more wait in line
---@field timeout number seconds without progress after which a request ends as `timeout`

---@param on lualxd.core.poller
---@param options lualxd.core.engine_options
---@return lualxd.core.engine? engine
---@return string? message
function core.engine(on, options) end

---@class lualxd.core.request_options
---@field method string
---@field url string sent as it is: libcurl resolves no dots and re-encodes nothing
---@field headers string[]? lines `Name: value`; one with a line break or NUL is refused by an error raised
---@field body nil|string|true|(string|{path: string})[] bytes; `true`: by `write` and `finish`; or pieces one after
---the other, of which `path`s are files that are opened by `submit`, again when the request has stood in line, and
---read as the connection takes them (no file's bytes pass through Lua)
---@field length integer? of a body `true`, if known (otherwise it goes chunked)
---@field once boolean? this request must never reach the server twice: never resent, see `failure.unsure`
---@field stream boolean? the response's body is to be taken by `read` as it comes
---@field limit integer? bytes of response body kept in memory (not for `stream`; 64 MiB unless told); more ends as `protocol`
---@field timeout number? instead of the engine's; 0: no limit
---@field brief boolean? of a stream that its reader will cut off soon: over HTTP/1.1 its connection
---isn't used again, over HTTP/2 it needs none of its own
---@field urgent boolean? before all in line that aren't
---@field hash boolean? keep the SHA-256 of the files in `body`
---@field upgrade boolean? a GET whose connection becomes a WebSocket: beside the requests that count, and active until
---it ends; its `timeout` is the handshake's. A server that refuses has answered as to any request
---@field silence number? of an `upgrade` over which nothing will be sent: pings are answered when nothing has come for so
---many seconds; math.huge: never. A peer that has said all closes, and what it said last is lost where TCP meets a byte
---of ours then, or before that one which nobody has read

---Puts a request in line and advances it as far as goes without blocking: when `connections` allows,
---a request whose body is in memory is in the kernel when this returns.
---@param options lualxd.core.request_options
---@return lualxd.core.request
function engine:submit(options) end

---@return integer active under way
---@return integer queued in line
function engine:count() end

---How many connections were opened so far.
---@return integer
function engine:connects() end

---Cancels what is under way and closes the connections. Idempotent, also __gc.
function engine:close() end

---@class lualxd.core.request one HTTP exchange; collected while under way: cancelled
local request = {}

---What `poller:step` calls this request; never used twice in a process.
---@return integer
function request:id() end

---@return "queued"|"active"|"done"
function request:state() end

---When it left the line, by `core.now`'s clock: the server can't have seen anything of it before.
---@return number? seconds nil: it hasn't
function request:began() end

---@class lualxd.core.failure
---@field kind "connect"|"tls"|"timeout"|"protocol"|"cancelled"|"lost"|"file"|"forked"|"failed"
---`connect`: no connection came about. `lost`: it ended before the answer was whole. `file`: a local
---file of the body can't be read. `forked`: this request belongs to the parent process.
---@field message string libcurl's or the system's words, one line
---@field unsure boolean the server may have got some of the request (some of it left this process)
---@field errno integer? of the system, for `connect` and `file`

---Where the status line and the headers of the final response are there (before the end, for a `stream`).
---@return integer? status
---@return string? headers the raw header block, lines separated by CRLF, without the status line
function request:head() end

---How it ended. nil while it hasn't.
---@return integer? status
---@return string|lualxd.core.failure headers_or_failure
---@return string? body not for `stream`
function request:result() end

---Bytes of a `stream` response that are there, all at once (up to 1 MiB a call); an empty string when there are none
---yet, nil at the end (whether that was a good one says `result`). Taking them lets the peer send on.
---@return string?
function request:read() end

---Hands over bytes of a body `true`; takes some, all or none of them.
---@param bytes string
---@param from? integer first byte, 1 unless told
---@return integer taken 0 when there is no room (news come when there is), also after the end
function request:write(bytes, from) end

---Of an `upgrade`: whether the handshake is done and nothing has ended it. News come when it is.
---@return boolean
function request:is_open() end

---Of a WebSocket: whether the server has said anything on it yet, be it a ping. That it did is news.
---@return boolean
function request:heard() end

---Of the first message that came over an `upgrade`, what there is of it, taken out. A message is text or binary as a
---whole; it may come in several pieces, of which the last may be empty. News come when there is more.
---@return string? bytes nil: nothing, for now, or for good once the state is `done`
---@return "text"|"binary" kind
---@return boolean final the message ends here
function request:receive() end

---Sends a message over an `upgrade`, or says that there will be no more: what comes is still received then, and it ends
---when the peer has said so, too.
---@param bytes string
---@param kind? "binary"|"text"|"close" of the last, `bytes` don't matter
---@return boolean? taken false: there is no room (news come when there is), or the handshake isn't done; nil: it has ended
function request:send(bytes, kind) end

---The end of a body `true`.
function request:finish() end

---Bytes sent and received of the bodies so far, and the body length that is known (-1 if not).
---@return integer sent
---@return integer to_send
---@return integer received
---@return integer to_receive
function request:progress() end

---The SHA-256 of the files of the body (`hash`), once they were sent whole.
---@return string? hex
function request:hash() end

---How often it was sent: 2 and more when libcurl sent it again on a new connection (never with `once`).
---@return integer
function request:attempts() end

---Ends it as `cancelled` if it hasn't ended. Its result can still be asked for.
function request:cancel() end

---Frees it (cancelling it first); idempotent, also __gc. After that every method raises.
function request:close() end

return core
