/* Messages of one ZeroMQ socket, in and out, without a Python object per frame and without exceptions.

The same as PlainChannel in mesh/net/channels.py, which says what each function does and runs where this was not built.

libzmq is not linked: its functions are looked up in the library that pyzmq itself has loaded, so both always are one
and the same. Nothing here waits (ZMQ_DONTWAIT), so the interpreter's lock is kept. Only libzmq's own thread runs
without it, in `released`, which takes no lock and touches no Python object.

A signal ends any of libzmq's calls (EINTR), also those that do not wait, before anything was done: it is made again at
once. Handlers in Python run later, as nothing may come between two frames of a message.
*/

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#define DONTWAIT 1
#define SNDMORE 2
#define POLLIN 1
#define TYPE 16
#define EVENTS 15
#define ROUTER 6
#define SRCFD 2
#define ZERO_COPY (64 * 1024) /* FRAME_BYTES_ZERO_COPY */
#define FRAMES_ON_STACK 8

typedef union { /* zmq_msg_t of libzmq 4: 64 bytes, aligned as a pointer is */
    unsigned char raw[64];
    void *align;
} Msg;

static int (*msg_init)(Msg *);
static int (*msg_init_data)(Msg *, void *, size_t, void (*)(void *, void *), void *);
static int (*msg_recv)(Msg *, void *, int);
static int (*msg_send)(Msg *, void *, int);
static int (*msg_close)(Msg *);
static int (*msg_move)(Msg *, Msg *);
static int (*msg_copy)(Msg *, Msg *);
static void *(*msg_data)(Msg *);
static size_t (*msg_size)(const Msg *);
static int (*msg_more)(const Msg *);
static int (*msg_get)(const Msg *, int);
static const char *(*msg_gets)(const Msg *, const char *);
static int (*send_bytes)(void *, const void *, size_t, int);
static int (*get_option)(void *, int, void *, size_t *);
static void (*version)(int *, int *, int *);

static PyObject *zmq_error;  /* zmq.ZMQError */
static PyObject *name_closed; /* "closed" */

/* -- a received frame that stays where ZeroMQ put it --------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Msg msg;
} KeptFrame;

static void kept_dealloc(KeptFrame *self) {
    msg_close(&self->msg);
    PyObject_Free(self);
}

static int kept_buffer(KeptFrame *self, Py_buffer *view, int flags) {
    return PyBuffer_FillInfo(view, (PyObject *)self, msg_data(&self->msg), (Py_ssize_t)msg_size(&self->msg), 0, flags);
}

static PyBufferProcs kept_as_buffer = {(getbufferproc)kept_buffer, NULL};

static PyTypeObject KeptFrameType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "mesh.net._channel.KeptFrame",
    .tp_doc = "A received frame that stays where ZeroMQ put it, until the last view of it is gone.",
    .tp_basicsize = sizeof(KeptFrame),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = (destructor)kept_dealloc,
    .tp_as_buffer = &kept_as_buffer,
};

/* What is in the message: bytes, or from ZERO_COPY on a view. With `shared`, `msg` stays valid, and is the caller's to
close; else it is empty afterwards. */
static PyObject *content(Msg *msg, int shared) {
    size_t size = msg_size(msg);
    if (size < ZERO_COPY) {
        PyObject *copied = PyBytes_FromStringAndSize(msg_data(msg), (Py_ssize_t)size);
        if (!shared)
            msg_close(msg);
        return copied;
    }
    KeptFrame *kept = PyObject_New(KeptFrame, &KeptFrameType);
    if (kept == NULL) {
        if (!shared)
            msg_close(msg);
        return NULL;
    }
    msg_init(&kept->msg);
    if (shared)
        msg_copy(&kept->msg, msg);
    else
        msg_move(&kept->msg, msg);
    PyObject *view = PyMemoryView_FromObject((PyObject *)kept);
    Py_DECREF(kept);
    return view;
}

/* -- buffers that libzmq sends from where they are ----------------------------------------------------------------- */

typedef struct Lent {
    Py_buffer view;
    struct Lent *next;
} Lent;

static Lent *returned; /* what libzmq needs no more, newest first; pushed by any thread, taken all at once by ours */

static void released(void *data, void *hint) {
    (void)data;
    Lent *lent = hint;
    Lent *head = __atomic_load_n(&returned, __ATOMIC_RELAXED);
    do
        lent->next = head;
    while (!__atomic_compare_exchange_n(&returned, &head, lent, 1, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
}

static void reclaim(void) {
    if (__atomic_load_n(&returned, __ATOMIC_RELAXED) == NULL)
        return;
    Lent *lent = __atomic_exchange_n(&returned, NULL, __ATOMIC_ACQUIRE);
    while (lent != NULL) {
        Lent *next = lent->next;
        PyBuffer_Release(&lent->view);
        PyMem_RawFree(lent);
        lent = next;
    }
}

/* -- a channel ----------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *sock;
    void *handle; /* valid as long as `sock` is open */
    int router;
    int holds; /* whether `last` is a message */
    Msg last;  /* the body of the message that was taken last: it knows its connection */
} Channel;

static void let_go(Channel *self) {
    if (self->holds) {
        self->holds = 0;
        msg_close(&self->last);
    }
}

/* 1: the socket was closed, and the handle leads nowhere; -1: an exception is set. */
static int is_closed(Channel *self) {
    if (self->sock == NULL)
        return 1; /* nobody has called __init__ */
    PyObject *closed = PyObject_GetAttr(self->sock, name_closed);
    if (closed == NULL)
        return -1;
    int answer = closed == Py_True;
    Py_DECREF(closed);
    return answer;
}

static int channel_init(Channel *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"sock", NULL};
    PyObject *sock;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Channel", names, &sock))
        return -1;
    PyObject *address = PyObject_GetAttrString(sock, "underlying");
    if (address == NULL)
        return -1;
    void *handle = PyLong_AsVoidPtr(address);
    Py_DECREF(address);
    if (handle == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "the socket is closed");
        return -1;
    }
    Py_INCREF(sock);
    Py_XSETREF(self->sock, sock);
    self->handle = handle;
    int closed = is_closed(self);
    if (closed != 0) {
        if (closed > 0)
            PyErr_SetString(PyExc_ValueError, "the socket is closed");
        return -1;
    }
    int kind = 0;
    size_t size = sizeof kind;
    get_option(handle, TYPE, &kind, &size);
    self->router = kind == ROUTER;
    return 0;
}

static void channel_dealloc(Channel *self) {
    let_go(self);
    Py_XDECREF(self->sock);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* 1: `msg` holds a frame; 0: none is there; -1: an exception is set. Unless 1, there is nothing to close. */
static int receive(Channel *self, Msg *msg) {
    int got;
    msg_init(msg);
    do
        got = msg_recv(msg, self->handle, DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got >= 0)
        return 1;
    int fault = errno;
    msg_close(msg);
    if (fault == EAGAIN)
        return 0;
    PyObject *error = PyObject_CallFunction(zmq_error, "i", fault);
    if (error != NULL) {
        PyErr_SetObject(zmq_error, error);
        Py_DECREF(error);
    }
    return -1;
}

static PyObject *channel_take(Channel *self, PyObject *Py_UNUSED(ignored)) {
    Msg msg;
    let_go(self);
    reclaim();
    int closed = is_closed(self);
    if (closed != 0)
        return closed < 0 ? NULL : Py_NewRef(Py_None);
    PyObject *name = NULL, *body = NULL, *frames = NULL, *taken = NULL;
    if (self->router) {
        int got = receive(self, &msg);
        if (got <= 0)
            return got < 0 ? NULL : Py_NewRef(Py_None);
        name = PyBytes_FromStringAndSize(msg_data(&msg), (Py_ssize_t)msg_size(&msg));
        msg_close(&msg);
    } else
        name = PyBytes_FromStringAndSize(NULL, 0);
    /* All frames of a message are there at once. What goes wrong from here on must not leave the rest of them to be
    taken for the next message: they are received all the same. */
    int got = receive(self, &self->last);
    if (got <= 0) {
        Py_XDECREF(name);
        return got < 0 ? NULL : Py_NewRef(Py_None);
    }
    self->holds = 1;
    int more = msg_more(&self->last);
    body = content(&self->last, 1);
    frames = PyList_New(0);
    while (more) {
        if (receive(self, &msg) <= 0)
            goto done;
        more = msg_more(&msg);
        PyObject *frame = content(&msg, 0);
        if (frame != NULL && frames != NULL && PyList_Append(frames, frame) < 0)
            Py_CLEAR(frames);
        if (frame == NULL)
            Py_CLEAR(frames);
        Py_XDECREF(frame);
    }
    if (name != NULL && body != NULL && frames != NULL)
        taken = PyTuple_Pack(3, name, body, frames);
done:
    if (taken == NULL && !PyErr_Occurred())
        PyErr_NoMemory();
    Py_XDECREF(name);
    Py_XDECREF(body);
    Py_XDECREF(frames);
    return taken;
}

static PyObject *channel_descriptor(Channel *self, PyObject *Py_UNUSED(ignored)) {
    int descriptor = self->holds ? msg_get(&self->last, SRCFD) : -1;
    if (descriptor < 0)
        Py_RETURN_NONE;
    return PyLong_FromLong(descriptor);
}

static PyObject *channel_said(Channel *self, PyObject *name) {
    const char *key = PyUnicode_AsUTF8(name);
    if (key == NULL)
        return NULL;
    const char *value = self->holds ? msg_gets(&self->last, key) : NULL;
    if (value == NULL)
        return PyUnicode_FromStringAndSize(NULL, 0);
    return PyUnicode_DecodeUTF8(value, (Py_ssize_t)strlen(value), "replace");
}

static PyObject *channel_readable(Channel *self, PyObject *Py_UNUSED(ignored)) {
    int closed = is_closed(self);
    if (closed < 0)
        return NULL;
    int events = 0, got;
    size_t size = sizeof events;
    if (closed)
        Py_RETURN_FALSE;
    do
        got = get_option(self->handle, EVENTS, &events, &size);
    while (got < 0 && errno == EINTR);
    return PyBool_FromLong(got == 0 && events & POLLIN);
}

/* 0, or the errno of why the frame was not taken. */
static int put_copy(void *handle, const void *data, size_t size, int flags) {
    int sent;
    do
        sent = send_bytes(handle, data, size, flags);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? errno : 0;
}

/* Likewise. What was lent has its `obj` set to NULL; else the caller has to release the view. */
static int put(void *handle, Py_buffer *view, int flags) {
    if (view->len < ZERO_COPY)
        return put_copy(handle, view->buf, (size_t)view->len, flags);
    Lent *lent = PyMem_RawMalloc(sizeof *lent);
    if (lent == NULL)
        return ENOMEM;
    Msg msg;
    lent->view = *view;
    if (msg_init_data(&msg, view->buf, (size_t)view->len, released, lent) < 0) {
        PyMem_RawFree(lent);
        return ENOMEM;
    }
    view->obj = NULL;
    int sent;
    do
        sent = msg_send(&msg, handle, flags);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0)
        return 0;
    int fault = errno;
    msg_close(&msg); /* which calls `released` */
    return fault;
}

/* 0, or the errno of the first frame: the message was not taken. What comes after a first frame that was taken waits
for nothing: if the connection ends in between, libzmq drops it, as all that had not been read by then. */
static int put_all(void *handle, const char *to, Py_ssize_t to_bytes, Py_buffer *views, Py_ssize_t count) {
    Py_ssize_t i = 0;
    int fault;
    if (to != NULL)
        fault = put_copy(handle, to, (size_t)to_bytes, DONTWAIT | SNDMORE);
    else {
        fault = put(handle, &views[0], count > 1 ? DONTWAIT | SNDMORE : DONTWAIT);
        i = 1;
    }
    if (fault)
        return fault;
    for (; i < count; i++) {
        int later = put(handle, &views[i], i < count - 1 ? DONTWAIT | SNDMORE : DONTWAIT);
        if (later && later != EAGAIN)
            fault = later;
    }
    return fault;
}

static PyObject *channel_send(Channel *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs < 2 || nargs > 3) {
        PyErr_SetString(PyExc_TypeError, "send takes (to, body) or (to, body, frames)");
        return NULL;
    }
    char *to = NULL;
    Py_ssize_t to_bytes = 0;
    if (args[0] != Py_None && PyBytes_AsStringAndSize(args[0], &to, &to_bytes) < 0)
        return NULL;
    reclaim();
    int closed = is_closed(self);
    if (closed != 0)
        return closed < 0 ? NULL : PyLong_FromLong(ENOTSOCK);
    PyObject *frames = NULL;
    Py_ssize_t count = 1, ready = 0;
    if (nargs == 3) {
        frames = PySequence_Fast(args[2], "frames are a sequence");
        if (frames == NULL)
            return NULL;
        count += PySequence_Fast_GET_SIZE(frames);
    }
    Py_buffer on_stack[FRAMES_ON_STACK], *views = on_stack;
    if (count > FRAMES_ON_STACK && (views = PyMem_New(Py_buffer, count)) == NULL) {
        Py_XDECREF(frames);
        return PyErr_NoMemory();
    }
    /* All are looked at before the first one leaves: half a message would be continued by the next one. */
    for (; ready < count; ready++) {
        PyObject *data = ready ? PySequence_Fast_GET_ITEM(frames, ready - 1) : args[1];
        if (PyObject_GetBuffer(data, &views[ready], PyBUF_SIMPLE) < 0)
            break;
    }
    int fault = 0;
    if (ready == count)
        fault = put_all(self->handle, to, to_bytes, views, count);
    for (Py_ssize_t i = 0; i < ready; i++)
        if (views[i].obj != NULL)
            PyBuffer_Release(&views[i]);
    if (views != on_stack)
        PyMem_Free(views);
    Py_XDECREF(frames);
    return ready == count ? PyLong_FromLong(fault) : NULL;
}

static PyMethodDef channel_methods[] = {
    {"take", (PyCFunction)channel_take, METH_NOARGS, "The next message, or None."},
    {"descriptor", (PyCFunction)channel_descriptor, METH_NOARGS, "The descriptor of the last message's connection."},
    {"said", (PyCFunction)channel_said, METH_O, "A property of the last message's connection."},
    {"readable", (PyCFunction)channel_readable, METH_NOARGS, "Whether a message is there."},
    {"send", (PyCFunction)(void (*)(void))channel_send, METH_FASTCALL, "Sends one message; 0, or why it was not taken."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject ChannelType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "mesh.net._channel.Channel",
    .tp_doc = "Messages of one ZeroMQ socket, in and out.",
    .tp_basicsize = sizeof(Channel),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)channel_init,
    .tp_dealloc = (destructor)channel_dealloc,
    .tp_methods = channel_methods,
};

/* -- the module ---------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void *function; /* where its address belongs */
} FUNCTIONS[] = {
    {"zmq_msg_init", &msg_init},   {"zmq_msg_init_data", &msg_init_data},
    {"zmq_msg_recv", &msg_recv},   {"zmq_msg_send", &msg_send},
    {"zmq_msg_close", &msg_close}, {"zmq_msg_move", &msg_move},
    {"zmq_msg_copy", &msg_copy},   {"zmq_msg_data", &msg_data},
    {"zmq_msg_size", &msg_size},   {"zmq_msg_more", &msg_more},
    {"zmq_msg_get", &msg_get},     {"zmq_msg_gets", &msg_gets},
    {"zmq_send", &send_bytes},     {"zmq_getsockopt", &get_option},
    {"zmq_version", &version},
};

/* 0: all functions are those of the libzmq that pyzmq uses; -1: an ImportError is set. */
static int find_functions(void) {
    PyObject *backend = PyImport_ImportModule("zmq.backend.cython._zmq");
    PyObject *file = backend == NULL ? NULL : PyObject_GetAttrString(backend, "__file__");
    Py_XDECREF(backend);
    if (file == NULL)
        return -1;
    const char *path = PyUnicode_AsUTF8(file);
    void *library = path == NULL ? NULL : dlopen(path, RTLD_LAZY); /* loaded already; its dependencies are looked in */
    Py_DECREF(file);
    if (library == NULL) {
        PyErr_SetString(PyExc_ImportError, "pyzmq's library cannot be opened");
        return -1;
    }
    for (size_t i = 0; i < sizeof FUNCTIONS / sizeof FUNCTIONS[0]; i++) {
        void *address = dlsym(library, FUNCTIONS[i].name);
        if (address == NULL) {
            PyErr_Format(PyExc_ImportError, "pyzmq's library has no %s", FUNCTIONS[i].name);
            return -1;
        }
        memcpy(FUNCTIONS[i].function, &address, sizeof address);
    }
    int major = 0, minor = 0, patch = 0;
    version(&major, &minor, &patch);
    if (major != 4 || minor < 2) {
        PyErr_Format(PyExc_ImportError, "libzmq %d.%d is not known here", major, minor);
        return -1;
    }
    return 0;
}

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mesh.net._channel",
    .m_doc = "Messages of one ZeroMQ socket, in and out: mesh/net/channels.py says how.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__channel(void) {
    if (find_functions() < 0)
        return NULL;
    PyObject *zmq = PyImport_ImportModule("zmq");
    if (zmq == NULL)
        return NULL;
    zmq_error = PyObject_GetAttrString(zmq, "ZMQError");
    Py_DECREF(zmq);
    name_closed = PyUnicode_InternFromString("closed");
    if (zmq_error == NULL || name_closed == NULL || PyType_Ready(&ChannelType) < 0 || PyType_Ready(&KeptFrameType) < 0)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made == NULL)
        return NULL;
    if (PyModule_AddObjectRef(made, "Channel", (PyObject *)&ChannelType) < 0 ||
        PyModule_AddIntConstant(made, "ZERO_COPY", ZERO_COPY) < 0) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
