# ext/hotpath/transport.h, for the extension modules that are transports. There is no module of that
# name.
cdef extern from "hotpath/transport.h":
    const char *NVQ_BINDING

    struct nvq:
        pass

    struct nvq_transport:
        pass

    struct nvq_binding:
        const nvq_transport *transport
        void *link
        nvq **queue
