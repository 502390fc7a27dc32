pyllama_interrupt * pyllama_interrupt_init(void);
void pyllama_interrupt_free(pyllama_interrupt * interrupt);
void pyllama_interrupt_begin(pyllama_interrupt * interrupt, bool poll_signals);
void pyllama_interrupt_cancel(pyllama_interrupt * interrupt);
bool pyllama_should_stop(void * data);
