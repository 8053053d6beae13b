// ModelStreamInfer. nginx's HTTP part cannot show the messages of a stream before they go on, so it
// sends each call by a connection of its own through this one: HTTP/2 as nginx writes it and as
// Triton answers. A message's bytes go on as they come, but for the last ones, which wait until
// all of it was found right: Triton never has a whole message that was not.
// https://www.rfc-editor.org/rfc/rfc9113#name-frame-format

import calls from 'grpc.js';
import shapes from 'shapes.js';

const PREFACE = 24;
const DATA = 0, HEADERS = 1, CONTINUATION = 9;
const END_STREAM = 1, END_HEADERS = 4, PADDED = 8;
const STATUS = {400: 3, 405: 12, 413: 8, 429: 8, 408: 4};  // gRPC's, of HTTP's
const QUIET_MS = 50;  // what Triton is writing comes whole before an end of ours
const WHOLE_MS = 1000;  // so long may a frame take to its end then
// njs gives memory back when a stream ends, and not before: each message that is read costs some
// kilobytes, each piece that comes half of one, in either direction.
const MAX_MESSAGES = 10000;
const MAX_PIECES = 200000;
const MAX_ANSWERED = 50000;  // pieces; of a longer answer nobody knows where its frames end
const LATE = {status: 408, why: 'The stream took longer than is allowed here.'};

function checked(s) {
    const call = {hasAnswered: false, isWhole: true, refusal: null, due: Infinity, isOver: false};
    let pieces = 0, answered = 0;
    const messages = {memory: Buffer.alloc(0), used: 0, count: 0, most: Number(s.variables.max_body)};
    const up = frames(PREFACE, (frame, data, at, end) => sent(messages, frame, data, at, end));
    const down = frames(0, (frame, data, at, end, isEnd) => {
        call.hasAnswered = call.hasAnswered || isEnd && isOfHead(frame);
    });

    function refuse(refusal) {
        if (!call.refusal) {
            call.refusal = refusal;
            setTimeout(end, QUIET_MS);
        }
    }

    // Only where a frame ends: what is written elsewhere would be taken for a part of it.
    function end() {
        call.due = Date.now();
        if (call.isWhole) {
            call.isOver = true;
            s.sendDownstream(answer(call), {flush: true});
        } else if (answered > MAX_ANSWERED) {
            s.on('downstream', breakOff);
        }
    }

    // Not by a timer, which would take nginx with it. Where nothing comes, proxy_timeout does it.
    function breakOff() {
        throw new Error('a stream was refused, or took longer than STREAM_LIFETIME');
    }

    setTimeout(refuse, 1000 * Number(s.variables.stream_seconds), LATE);

    s.on('upstream', (data, flags) => {
        if (call.refusal) {
            return;
        }
        try {
            if (++pieces > MAX_PIECES) {
                shapes.refuse(429, `A stream has at most ${MAX_PIECES} pieces; begin another one.`);
            }
            up(data);
        } catch (refusal) {
            if (!refusal.status) {
                throw refusal;
            }
            refuse(refusal);
            return;
        }
        s.send(data, flags);
    });

    s.on('downstream', (data, flags) => {
        if (call.isOver) {
            return;
        }
        const whole = down(data);
        if (call.due < Infinity && whole >= 0) {
            call.isOver = true;
            s.send(Buffer.concat([data.subarray(0, whole), answer(call)]), {flush: true});
            return;
        }
        if (Date.now() - call.due > WHOLE_MS) {
            breakOff();
        }
        s.send(data, flags);
        call.isWhole = data.length ? whole === data.length : call.isWhole;
        if (++answered > MAX_ANSWERED) {
            call.isWhole = false;
            s.off('downstream');
        }
    });
}

// Reads frames as they come, behind some octets: visit(frame, data, at, end, isEnd) is called for
// each stretch of a frame's content, and once for one that has none; after the last one any other
// frame may follow. Returns where that was last so; -1 if it was not.
function frames(skip, visit) {
    const frame = {length: 0, kind: 0, flags: 0};
    let head = -skip;  // octets of the frame's head that are read
    let left = 0;  // of its content

    return (data) => {
        let at = 0, whole = -1;
        while (at < data.length) {
            if (head < 9) {
                headed(frame, head++, data[at++]);
                left = frame.length;
            }
            if (head === 9) {
                const end = Math.min(at + left, data.length);
                left -= end - at;
                const isEnd = !left && !(isOfHead(frame) && !(frame.flags & END_HEADERS));
                visit(frame, data, at, end, isEnd);
                at = end;
                head = left ? 9 : 0;
                whole = isEnd ? at : whole;
            }
        }
        return whole;
    };
}

function isOfHead(frame) {
    return frame.kind === HEADERS || frame.kind === CONTINUATION;
}

function headed(frame, index, octet) {
    if (index >= 0 && index < 3) {
        frame.length = index ? frame.length * 256 + octet : octet;
    } else if (index === 3) {
        frame.kind = octet;
    } else if (index === 4) {
        frame.flags = octet;
    }
}

// Collects the client's messages; checks each that is complete.
function sent(messages, frame, data, at, end) {
    if (frame.kind !== DATA) {
        return;
    }
    if (frame.flags & PADDED) {
        shapes.refuse(400, '');
    }
    keep(messages, data, at, end);
    let done = 0;
    for (let length; (length = needed(messages, done)) <= messages.used - done; done += length) {
        check(messages, messages.memory.subarray(done, done + length));
    }
    messages.memory.copyWithin(0, done, messages.used);
    messages.used -= done;
}

function check(messages, message) {
    if (++messages.count > MAX_MESSAGES) {
        shapes.refuse(429, `A stream has at most ${MAX_MESSAGES} messages; begin another one.`);
    }
    calls.checkMessage(message);
}

// More room than is needed, up to that of the largest message: it may come octet by octet.
function keep(messages, data, at, end) {
    const used = messages.used + end - at;
    if (used > messages.memory.length) {
        const room = Buffer.alloc(Math.max(used, Math.min(2 * used, messages.most)));
        messages.memory.copy(room, 0, 0, messages.used);
        messages.memory = room;
    }
    data.copy(messages.memory, messages.used, at, end);
    messages.used = used;
}

// The length of the message that begins there, or of the prefix that says it.
function needed(messages, at) {
    if (messages.used - at < calls.PREFIX) {
        return calls.PREFIX;
    }
    return calls.lengthOf(messages.memory, at, messages.most);
}

// One of ours in the place of what Triton would say.
function answer(call) {
    const status = String(STATUS[call.refusal.status] || 3);
    const why = call.refusal.why || 'The request is malformed.';
    const begins = [Buffer.from([0x88]), field('content-type', 'application/grpc')];  // status 200
    const ends = [field('grpc-status', status), field('grpc-message', why)];
    const block = Buffer.concat(call.hasAnswered ? ends : begins.concat(ends));
    const flags = END_STREAM | END_HEADERS;
    const head = Buffer.from([0, block.length >> 8, block.length & 255, HEADERS, flags, 0, 0, 0, 1]);
    return Buffer.concat([head, block]);
}

// A literal of HPACK that nobody remembers; both parts are shorter than 127 octets.
function field(name, value) {
    const lengths = [[0, name.length], [value.length]].map((each) => Buffer.from(each));
    return Buffer.concat([lengths[0], Buffer.from(name), lengths[1], Buffer.from(value)]);
}

export default {checked};
